"""A `transformers` model in this process that says how probable every allowed answer is.

What all prompts begin with is computed once and kept as keys and values; prompts are batched by length.

Dimension key: B prompts in a batch, C choices, L tokens, P shared prefix, R rows kept, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from potstill.engines.row_logits import row_logits
from potstill.models.forward import cached_rows
from potstill.models.selftest import Sample, difference, fault_of
from potstill.text.tokens import Ids


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """`positions` into the prompts asked, their ln p(choice | prompt), tokens computed, seconds taken."""

    number: int
    positions: tuple[int, ...]
    choice_logp: tuple[tuple[float, ...], ...]
    tokens: int
    seconds: float


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[tuple[int, ...]]:
    """Positions grouped by similar length, each group at most `batch_tokens` with its padding. A pure function of the
    lengths, so that a resumed run computes the same batches and the same bits."""
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[position] > batch_tokens:
            batches.append(tuple(batch))
            batch = []
        batch.append(position)
    return [*batches, tuple(batch)] if batch else batches


class KeptPrefix:
    """Keys and values of what prompts begin with, computed once and lent to every batch."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, prefix: Ids) -> None:
        self.prefix = prefix
        cache = DynamicCache()
        ids_1P = torch.tensor([prefix], device=model.device)
        model.base_model(input_ids=ids_1P, past_key_values=cache, use_cache=True)
        self._layers: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in cache.layers]  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]

    def cache(self, size: int) -> DynamicCache:
        """For a batch of `size`, to be written on."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self._layers):
            cache.update(keys.expand(size, -1, -1, -1), values.expand(size, -1, -1, -1), number)
        return cache


def keeps_prefix(model: PreTrainedModel) -> bool:
    return prefix_fault(model) is None


def prefix_fault(model: PreTrainedModel | PretrainedConfig) -> str | None:
    """Why texts that go on from a kept prefix are not what each is alone; None: they are."""
    return fault_of(model, "kept prefix", _prefix_fault)


def _prefix_fault(sample: Sample) -> str | None:
    """Gone on from, cropped and gone on from again, and lent a second time."""
    cut, longest = sample.beginning, max(map(len, sample.texts)) - sample.beginning
    kept = KeptPrefix(sample.model, sample.texts[0][:cut])
    ids_BL = torch.tensor([[*ids[cut:], *[0] * (cut + longest - len(ids))] for ids in sample.texts])

    @torch.no_grad()
    def fault(cache: DynamicCache) -> str | None:
        made_BLD = sample.model.base_model(input_ids=ids_BL, past_key_values=cache, use_cache=True)[0]
        rows = zip(made_BLD, sample.hidden, strict=True)
        return next((off for row, want in rows if (off := difference(row[: len(want) - cut], want[cut:]))), None)

    first = kept.cache(len(sample.texts))
    if off := fault(first):
        return off
    first.crop(-longest)
    return fault(first) or fault(kept.cache(len(sample.texts)))


class ChoiceScorer:
    """Scores prompts that share `prefix` (empty: nothing is cached)."""

    def __init__(self, model: PreTrainedModel, choices: Sequence[Ids], *, prefix: Ids = ()) -> None:
        self._model = model
        self._choices = choices
        self._prefix = prefix if prefix and keeps_prefix(model) else ()
        self._kept: KeptPrefix | None = None

    def score(
        self, prompts: Sequence[Ids], *, batch_tokens: int, skip: frozenset[int] = frozenset()
    ) -> Iterator[ScoredBatch]:
        """Batch by batch, leaving out the positions in `skip`. The batches are planned over all prompts, so that a run
        resumed between two of them computes the same bits as an unbroken one."""
        cut = len(self._prefix)
        suffixes = [prompt[cut:] for prompt in prompts]
        for number, planned in enumerate(plan_batches([len(s) for s in suffixes], batch_tokens)):
            positions = tuple(i for i in planned if i not in skip)
            if not positions:
                continue
            if self._prefix and self._kept is None:
                self._kept = KeptPrefix(self._model, self._prefix)
            start = time.perf_counter()
            batch = [suffixes[i] for i in positions]
            logp_BC = self._batch(batch)
            yield ScoredBatch(
                number=number,
                positions=positions,
                choice_logp=tuple(tuple(row) for row in logp_BC.tolist()),
                tokens=sum(map(len, batch)),
                seconds=time.perf_counter() - start,
            )

    @torch.inference_mode()
    def _batch(self, suffixes: Sequence[Ids]) -> Tensor:
        cache = self._kept.cache(len(suffixes)) if self._kept else None
        if all(len(choice) == 1 for choice in self._choices):
            logp_BV = self._logp(suffixes, [len(s) - 1 for s in suffixes], cache)
            return logp_BV[:, [choice[0] for choice in self._choices]]
        return torch.stack([self._branch(suffixes, choice, cache) for choice in self._choices], dim=-1)

    def _branch(self, suffixes: Sequence[Ids], choice: Ids, cache: DynamicCache | None) -> Tensor:
        """An answer of several tokens: the prompts again, teacher-forced along the answer."""
        sequences = [(*suffix, *choice[:-1]) for suffix in suffixes]
        at = [len(suffix) - 1 + step for suffix in suffixes for step in range(len(choice))]
        logp_RV = self._logp(sequences, at, cache)
        if cache is not None:
            cache.crop(-max(map(len, sequences)))
        tokens = torch.tensor(choice, device=logp_RV.device).repeat(len(suffixes), 1)
        return logp_RV.view(len(suffixes), len(choice), -1).gather(-1, tokens.unsqueeze(-1)).sum(dim=(1, 2))

    def _logp(self, sequences: Sequence[Ids], at: Sequence[int], cache: DynamicCache | None) -> Tensor:
        """ln p of the next token (R, V) at the positions `at`, equally many a sequence."""
        ids_BL = self._tensor(sequences)
        b_R = torch.arange(len(sequences), device=ids_BL.device).repeat_interleave(len(at) // len(sequences))
        l_R = torch.tensor(at, device=ids_BL.device)
        hidden_RD = cached_rows(self._model, ids_BL, b_R, l_R, cache=cache)
        return torch.log_softmax(row_logits(self._model, hidden_RD), dim=-1)

    def _tensor(self, sequences: Sequence[Ids]) -> Tensor:
        longest = max(map(len, sequences))
        padded = [[*ids, *[0] * (longest - len(ids))] for ids in sequences]
        return torch.tensor(padded, device=self._model.device)


def shared_prefix(prompts: Sequence[Ids]) -> Ids:
    """What all prompts begin with, leaving every prompt at least one token of its own."""
    first, last = min(prompts, default=()), max(prompts, default=())  # what these two share, all share
    agree = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    room = min((len(p) for p in prompts), default=1) - 1
    return tuple(token for token, _ in agree)[:room]
