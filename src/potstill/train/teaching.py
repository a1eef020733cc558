"""A teacher that scores what the student learns, token by token: while it is learnt, or once for all runs.

Dimension key: N scored tokens, D width, V vocabulary, B sequences, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.engines.local import KeptPrefix, keeps_prefix, shared_prefix
from potstill.engines.row_logits import row_logits
from potstill.losses import Hidden, Sampled, Signal, TopK
from potstill.models.documents import Documents, alike
from potstill.models.forward import cached_rows, hidden_rows, logit_terms
from potstill.models.load import device
from potstill.records import Progress, Watch
from potstill.store.draws import draw
from potstill.store.forms import Form, HiddenForm, SampledForm, TopKForm
from potstill.store.signals import Identity, SignalsCache, key_of
from potstill.text.tokens import Ids
from potstill.train.batch import Row
from potstill.train.served import ServedTeacher
from potstill.train.world import ALONE, World

Teach = Callable[[Sequence[Row]], Signal]
"""The teacher's distribution at every scored target of the rows, in their order."""

_WORTH_KEEPING = 16  # tokens of a shared prefix, where it is half of the prompt: less is faster read again, packed
_BATCH_TOKENS = 8192
_LOGIT_ROWS = 512  # rows of logits at once, while signals are computed for a cache


class LiveTeacher:
    """The whole distribution, as hidden states and head. What all its prompts begin with (instructions, worked
    examples) is computed once; `prompts` are those of all rows it will ever be asked about."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Ids], world: World = ALONE) -> None:
        self.model, self._world, self._root = model, world, world.rooted(model)
        shared = shared_prefix(prompts)
        mean = sum(map(len, prompts)) / len(prompts)
        worth = len(shared) >= max(_WORTH_KEEPING, mean / 2) and keeps_prefix(model)
        self._kept = self._root(lambda: KeptPrefix(model, shared)) if worth else None

    @torch.no_grad()
    def __call__(self, rows: Sequence[Row]) -> Hidden:
        return self._root(lambda: self._score(rows))

    def _score(self, rows: Sequence[Row]) -> Hidden:
        hidden_ND = self._packed(rows) if self._kept is None else self._after(self._kept, rows)
        head: Any = self.model.get_output_embeddings()
        scale, softcap = logit_terms(self.model)
        return Hidden(hidden_ND, head.weight, bias_V=head.bias, logit_scale=scale, softcap=softcap)

    def logits(self, rows: Sequence[Row], vocabulary: int) -> Tensor:
        """fp32 logits (N, vocabulary) of the same tokens."""
        return row_logits(self.model, self(rows).hidden_ND)[:, :vocabulary]

    def _packed(self, rows: Sequence[Row]) -> Tensor:
        documents = Documents.of([(*row.teacher_prefix, *row.target[:-1]) for row in rows], self.model.device)
        at = [
            start + len(row.teacher_prefix) - 1 + step
            for row, start in zip(rows, documents.start_S, strict=True)
            for step in range(row.scored)
        ]
        return hidden_rows(self.model, documents, torch.tensor(at, dtype=torch.long, device=self.model.device))

    def _after(self, kept: KeptPrefix, rows: Sequence[Row]) -> Tensor:
        cut = len(kept.prefix)
        suffixes = [(*row.teacher_prefix[cut:], *row.target[:-1]) for row in rows]
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for batch in self._world.even(alike([len(s) for s in suffixes], _BATCH_TOKENS)):
            longest = max(len(suffixes[i]) for i in batch)
            ids_BL = torch.tensor([[*suffixes[i], *[0] * (longest - len(suffixes[i]))] for i in batch])
            scored = [rows[i].scored for i in batch]
            first = [len(rows[i].teacher_prefix) - cut - 1 for i in batch]
            b_R = torch.arange(len(batch)).repeat_interleave(torch.tensor(scored))
            l_R = torch.cat([torch.arange(f, f + s) for f, s in zip(first, scored, strict=True)])
            made_RD = cached_rows(
                self.model,
                ids_BL.to(self.model.device),
                b_R.to(self.model.device),
                l_R.to(self.model.device),
                cache=kept.cache(len(batch)),
            )
            for i, part_D in zip(batch, made_RD.split(scored), strict=True):
                found[i] = part_D
        return torch.cat(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Signals on disk: where, of what, in which form. `load` brings the teacher; with nothing to compute it is never
    called."""

    folder: Path
    identity: Identity
    form: Form
    load: Callable[[], LiveTeacher | ServedTeacher]


def from_cache(kept: Kept, rows: Sequence[Row], watch: Watch) -> Teach:
    """What a cache says of the rows, after what it lacks was computed. It goes on where a stopped run left it."""
    keys = {key_of(row.teacher_prefix, row.target): row for row in rows}
    with SignalsCache.open(kept.folder, kept.identity, kept.form) as cache:
        missing = [keys[key] for key in cache.missing(list(keys))]
        teacher = kept.load() if missing else None
        done = len(keys) - len(missing)
        for some in _some_at_once(missing):
            assert teacher is not None
            named = (key_of(row.teacher_prefix, row.target) for row in some)
            cache.append_all(list(zip(named, _forms(teacher, some, kept), strict=True)))
            done += len(some)
            watch(Progress(stage="train", what="teacher's signals", done=done, total=len(keys)))
        for said in cache.damage:
            watch(Progress(stage="train", what="teacher's signals", done=done, total=len(keys), note=said))
    reading = SignalsCache.open(kept.folder, kept.identity, kept.form)
    return lambda asked: reading.read([key_of(row.teacher_prefix, row.target) for row in asked], device=device())


def _some_at_once(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """A few rows at a time: what a form makes of them has the width of the vocabulary."""
    some, tokens = list[Row](), 0
    for row in rows:
        if some and tokens + row.scored > _LOGIT_ROWS:
            yield some
            some, tokens = [], 0
        some.append(row)
        tokens += row.scored
    if some:
        yield some


def _forms(teacher: LiveTeacher | ServedTeacher, rows: Sequence[Row], kept: Kept) -> Iterator[Hidden | TopK | Sampled]:
    """The rows' signals as the cache keeps them."""
    if isinstance(teacher, ServedTeacher):
        yield from teacher.each(rows)
        return
    sizes, temperature = [row.scored for row in rows], kept.identity.temperature
    if isinstance(kept.form, HiddenForm):
        whole = teacher(rows)
        yield from (replace(whole, hidden_ND=part_ND) for part_ND in whole.hidden_ND.split(sizes))
        return
    logits_NV = teacher.logits(rows, kept.identity.vocabulary)
    for row, part_NV in zip(rows, logits_NV.split(sizes), strict=True):
        match kept.form:
            case TopKForm(k):
                top = torch.log_softmax(part_NV / temperature, dim=-1).topk(k, dim=-1)
                lse_N = part_NV.logsumexp(-1) if temperature == 1 else None
                yield TopK(top.indices, top.values, lse_N, temperature)
            case SampledForm(draws):
                key = key_of(row.teacher_prefix, row.target)
                yield draw(part_NV, draws=draws, temperature=temperature, key=key)
