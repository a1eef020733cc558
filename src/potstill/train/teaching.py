"""A teacher that scores what the student learns, token by token, while it is learnt.

Dimension key: N scored tokens, D width, V vocabulary, B sequences, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.engines.local import KeptPrefix, plan_batches, shared_prefix
from potstill.losses import Hidden, Signal
from potstill.models.documents import Documents
from potstill.models.forward import cached_rows, hidden_rows, logit_terms
from potstill.text.tokens import Ids
from potstill.train.batch import Row

Teach = Callable[[Sequence[Row]], Signal]
"""The teacher's distribution at every scored target of the rows, in their order."""

_WORTH_KEEPING = 16  # tokens of a shared prefix
_BATCH_TOKENS = 8192


class LiveTeacher:
    """The whole distribution, as hidden states and head. What all its prompts begin with (instructions, worked
    examples) is computed once; `prompts` are those of all rows it will ever be asked about."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Ids]) -> None:
        self._model = model
        shared = shared_prefix(prompts)
        self._kept = KeptPrefix(model, shared) if len(shared) >= _WORTH_KEEPING else None

    @torch.no_grad()
    def __call__(self, rows: Sequence[Row]) -> Hidden:
        hidden_ND = self._packed(rows) if self._kept is None else self._after(self._kept, rows)
        head: Any = self._model.get_output_embeddings()
        scale, softcap = logit_terms(self._model)
        return Hidden(hidden_ND, head.weight, bias_V=head.bias, logit_scale=scale, softcap=softcap)

    def _packed(self, rows: Sequence[Row]) -> Tensor:
        documents = Documents.of([(*row.teacher_prefix, *row.target[:-1]) for row in rows], self._model.device)
        at = [
            start + len(row.teacher_prefix) - 1 + step
            for row, start in zip(rows, documents.start_S, strict=True)
            for step in range(row.scored)
        ]
        return hidden_rows(self._model, documents, torch.tensor(at, device=self._model.device))

    def _after(self, kept: KeptPrefix, rows: Sequence[Row]) -> Tensor:
        cut = len(kept.prefix)
        suffixes = [(*row.teacher_prefix[cut:], *row.target[:-1]) for row in rows]
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for batch in plan_batches([len(s) for s in suffixes], _BATCH_TOKENS):
            longest = max(len(suffixes[i]) for i in batch)
            ids_BL = torch.tensor([[*suffixes[i], *[0] * (longest - len(suffixes[i]))] for i in batch])
            scored = [rows[i].scored for i in batch]
            first = [len(rows[i].teacher_prefix) - cut - 1 for i in batch]
            b_R = torch.arange(len(batch)).repeat_interleave(torch.tensor(scored))
            l_R = torch.cat([torch.arange(f, f + s) for f, s in zip(first, scored, strict=True)])
            made_RD = cached_rows(
                self._model,
                ids_BL.to(self._model.device),
                b_R.to(self._model.device),
                l_R.to(self._model.device),
                cache=kept.cache(len(batch)),
            )
            for i, part_D in zip(batch, made_RD.split(scored), strict=True):
                found[i] = part_D
        return torch.cat(found)
