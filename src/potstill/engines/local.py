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
from transformers import DynamicCache, PreTrainedModel

from potstill.models.forward import head_logits, hidden_states
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


class ChoiceScorer:
    """Scores prompts that share `prefix` (empty: nothing is cached)."""

    def __init__(self, model: PreTrainedModel, choices: Sequence[Ids], *, prefix: Ids = ()) -> None:
        self._model = model
        self._choices = choices
        self._prefix = prefix
        self._kept: list[tuple[Tensor, Tensor]] = []

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
            if self._prefix and not self._kept:
                self._kept = self._prefill()
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
    def _prefill(self) -> list[tuple[Tensor, Tensor]]:
        cache = DynamicCache()
        hidden_states(self._model, self._tensor([self._prefix]), cache=cache)
        return [(layer.keys, layer.values) for layer in cache.layers]

    @torch.inference_mode()
    def _batch(self, suffixes: Sequence[Ids]) -> Tensor:
        cache = self._cache(len(suffixes)) if self._kept else None
        if any(len(choice) > 1 for choice in self._choices):
            return self._branches(suffixes, cache)
        rows, ends = torch.arange(len(suffixes)), torch.tensor([len(s) - 1 for s in suffixes])
        hidden_BD = hidden_states(self._model, self._tensor(suffixes), cache=cache)[rows, ends]
        logp_BV = torch.log_softmax(head_logits(self._model, hidden_BD), dim=-1)
        return logp_BV[:, [choice[0] for choice in self._choices]]

    def _branches(self, suffixes: Sequence[Ids], cache: DynamicCache | None) -> Tensor:
        """Answers of several tokens: the prompt once per choice, teacher-forced along the answer."""
        columns: list[Tensor] = []
        for choice in self._choices:
            ids_BL = self._tensor([(*suffix, *choice[:-1]) for suffix in suffixes])
            hidden_BLD = hidden_states(self._model, ids_BL, cache=cache)
            if cache is not None:
                cache.crop(-ids_BL.shape[1])
            total = torch.zeros(len(suffixes), device=hidden_BLD.device)
            for step, token in enumerate(choice):
                at = torch.tensor([len(s) - 1 + step for s in suffixes])
                logits_BV = head_logits(self._model, hidden_BLD[torch.arange(len(suffixes)), at])
                total += torch.log_softmax(logits_BV, dim=-1)[:, token]
            columns.append(total)
        return torch.stack(columns, dim=-1)

    def _cache(self, size: int) -> DynamicCache:
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self._kept):
            cache.update(keys.expand(size, -1, -1, -1), values.expand(size, -1, -1, -1), number)
        return cache

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
