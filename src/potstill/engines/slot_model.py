"""One model as slots drive it: its prompts, its keys and values, its masks. What an answer is, `slots.py` knows. Where
layers keep something else than keys and values, a model writes with the cache that it brings, row by row.

Dimension key: P prompts computed together, B active rows, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from potstill.engines.local import KeptPrefix, keeps_prefix, shared_prefix
from potstill.engines.row_logits import row_logits
from potstill.engines.slot_cache import KeysValues, Masks, SlotCache
from potstill.errors import InputError
from potstill.models.packed import packed
from potstill.models.selftest import Sample, difference, fault_of
from potstill.text.tokens import Ids

_WORTH_KEEPING = 16
"""Tokens of a shared beginning, where it is half of the prompts."""
_WORTH_PACKING = 16
"""Tokens of the longest answer: bringing the weights into order costs about what four steps gain."""


class Decoder(ABC):
    """A model that writes in `slots` rows of `capacity` tokens. `prefilled` counts the prompt tokens computed."""

    def __init__(self, model: PreTrainedModel, *, slots: int, capacity: int) -> None:
        self.model, self._slots, self._capacity = model, slots, capacity
        self._kept: KeptPrefix | None = None
        self.prefilled = 0

    def check(self, prompts: Sequence[Ids], limits: Sequence[int], *, whose: str = "") -> None:
        """Raises InputError for a prompt that a slot cannot hold together with its answer."""
        for number, (ids, limit) in enumerate(zip(prompts, limits, strict=True)):
            if not ids or limit < 1:
                raise InputError(
                    f"{whose}prompt {number} has {len(ids)} tokens and its answer up to {limit}",
                    way_out="give it at least one of each",
                )
            if len(ids) + limit > self._capacity:
                raise InputError(
                    f"{whose}prompt {number} has {len(ids)} tokens and its answer up to {limit}, but a slot holds "
                    f"{self._capacity}",
                    way_out="raise capacity_tokens or ask for shorter answers",
                )

    @contextmanager
    def writing(self, prompts: Sequence[Ids], longest: int) -> Generator[None]:
        """While answers of at most `longest` tokens to these prompts are written: without dropout, what the prompts
        begin with computed once with the weights as they are now, weights in the order that steps of a few rows like
        where answers are long enough to pay for that."""
        training = self.model.training
        self.model.eval()
        try:
            self._kept = self._beginning(prompts)
            with packed(self.model) if longest >= _WORTH_PACKING else nullcontext():
                yield
        finally:
            self._kept = None
            self.model.train(training)

    @property
    def cut(self) -> int:
        """Tokens of every prompt that are computed already."""
        return 0 if self._kept is None else len(self._kept.prefix)

    @abstractmethod
    def prefill(self, prompts: Sequence[Ids]) -> tuple[Tensor, list[Any]]:
        """Logits of each prompt's next token (P, V), and what `place` puts into a slot."""

    @abstractmethod
    def place(self, slot: int, prompt: Any) -> None: ...

    @abstractmethod
    def step(self, last_B: Sequence[int], length_B: Sequence[int]) -> Tensor:
        """Logits (B, V) of the next token of the first B slots: each holds `length_B` tokens and reads `last_B`."""

    @abstractmethod
    def move(self, source: int, target: int, length: int) -> None:
        """What a slot holds into another one."""

    def _beginning(self, prompts: Sequence[Ids]) -> KeptPrefix | None:
        """What the prompts begin with, where that saves something."""
        del prompts


def decoder_of(model: PreTrainedModel, *, slots: int, capacity: int) -> Decoder:
    """The fastest way of writing that is exact for the architecture."""
    if slots_fault(model) is None:
        return SlotModel(model, slots=slots, capacity=capacity)
    kind = RowByRow if own_cache_fault(model) is None else Whole
    return kind(model, slots=slots, capacity=capacity)


class SlotModel(Decoder):
    """Keys and values in slots, made at the first `place` and kept."""

    def __init__(self, model: PreTrainedModel, *, slots: int, capacity: int) -> None:
        super().__init__(model, slots=slots, capacity=capacity)
        self._masks = Masks.of(model)
        self._cache: SlotCache | None = None

    def prefill(self, prompts: Sequence[Ids]) -> tuple[Tensor, list[KeysValues]]:
        """Padded on the right."""
        cut, device = self.cut, self.model.device
        own_P = [ids[cut:] for ids in prompts]
        longest = max(map(len, own_P))
        rows = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in own_P], device=device)
        at_PL = torch.arange(cut, cut + longest, device=device).expand(len(own_P), longest)
        cache = DynamicCache() if self._kept is None else self._kept.cache(len(own_P))
        hidden_PLD = self._forward(rows, at_PL, cut + longest, cache)
        self.prefilled += sum(map(len, own_P))
        last_P = torch.tensor([len(ids) - 1 for ids in own_P], device=device)
        logits_PV = row_logits(self.model, hidden_PLD[torch.arange(len(own_P), device=device), last_P])
        computed: KeysValues = [(layer.keys, layer.values) for layer in cache.layers]  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
        return logits_PV, [
            [(keys[row, :, : len(ids)].clone(), values[row, :, : len(ids)].clone()) for keys, values in computed]
            for row, ids in enumerate(prompts)
        ]

    def place(self, slot: int, prompt: KeysValues) -> None:
        if self._cache is None:
            like = [(keys.unsqueeze(0), values.unsqueeze(0)) for keys, values in prompt]
            self._cache = SlotCache(like, slots=self._slots, capacity=self._capacity)
        self._cache.write(slot, prompt)

    def step(self, last_B: Sequence[int], length_B: Sequence[int]) -> Tensor:
        assert self._cache is not None
        at_B = torch.tensor(length_B, device=self.model.device)
        longest = max(length_B) + 1
        self._cache.expect(at_B, longest)
        last_B1 = torch.tensor(last_B, device=self.model.device).unsqueeze(-1)
        hidden_B1D = self._forward(last_B1, at_B.unsqueeze(-1), longest, self._cache)
        return row_logits(self.model, hidden_B1D[:, 0])

    def move(self, source: int, target: int, length: int) -> None:
        assert self._cache is not None
        self._cache.move(source, target, length)

    def _beginning(self, prompts: Sequence[Ids]) -> KeptPrefix | None:
        shared = shared_prefix(prompts)
        if len(prompts) < 2 or len(shared) < max(_WORTH_KEEPING, sum(map(len, prompts)) / len(prompts) / 2):
            return None
        if not keeps_prefix(self.model):
            return None
        self.prefilled += len(shared)
        return KeptPrefix(self.model, shared)

    def _forward(self, ids_BL: Tensor, at_BL: Tensor, keys: int, cache: DynamicCache | SlotCache) -> Tensor:
        """Last hidden states (B, L, D)."""
        base: Any = self.model.base_model
        mask = self._masks.over(at_BL, keys, self.model.dtype)
        return base(
            input_ids=ids_BL, attention_mask=mask, position_ids=at_BL, past_key_values=cache, use_cache=True
        ).last_hidden_state


class RowByRow(Decoder):
    """The cache that the architecture makes itself, one a row: states of recurrent layers among its keys and values."""

    def __init__(self, model: PreTrainedModel, *, slots: int, capacity: int) -> None:
        super().__init__(model, slots=slots, capacity=capacity)
        self._caches: dict[int, dict[str, Any]] = {}

    def prefill(self, prompts: Sequence[Ids]) -> tuple[Tensor, list[dict[str, Any]]]:
        made = [self._forward(ids, {}) for ids in prompts]
        self.prefilled += sum(map(len, prompts))
        return torch.stack([logits_V for logits_V, _ in made]), [cache for _, cache in made]

    def place(self, slot: int, prompt: dict[str, Any]) -> None:
        self._caches[slot] = copy.deepcopy(prompt)  # another answer to the prompt goes on from it too

    def step(self, last_B: Sequence[int], length_B: Sequence[int]) -> Tensor:
        found = list[Tensor]()
        for row, last in enumerate(last_B):
            logits_V, self._caches[row] = self._forward([last], self._caches[row])
            found.append(logits_V)
        return torch.stack(found)

    def move(self, source: int, target: int, length: int) -> None:
        self._caches[target] = self._caches.pop(source)

    def _forward(self, ids: Sequence[int], cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits (V) after the last token, and the cache under the name that the model gives it."""
        made = self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=True, **cache)
        name = next(name for name in ("past_key_values", "cache_params") if made.get(name) is not None)
        return made.logits[0, -1].float(), {name: made[name]}


class Whole(Decoder):
    """No cache at all: every row is computed from its first token, for every token of it."""

    def __init__(self, model: PreTrainedModel, *, slots: int, capacity: int) -> None:
        super().__init__(model, slots=slots, capacity=capacity)
        self._rows: dict[int, list[int]] = {}

    def prefill(self, prompts: Sequence[Ids]) -> tuple[Tensor, list[Ids]]:
        self.prefilled += sum(map(len, prompts))
        return torch.stack([self._forward(ids) for ids in prompts]), list(prompts)

    def place(self, slot: int, prompt: Ids) -> None:
        self._rows[slot] = list(prompt)

    def step(self, last_B: Sequence[int], length_B: Sequence[int]) -> Tensor:
        for row, last in enumerate(last_B):
            self._rows[row].append(last)
        return torch.stack([self._forward(self._rows[row]) for row in range(len(last_B))])

    def move(self, source: int, target: int, length: int) -> None:
        self._rows[target] = self._rows.pop(source)

    def _forward(self, ids: Sequence[int]) -> Tensor:
        made = self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=False)
        return made.logits[0, -1].float()


def slots_fault(model: PreTrainedModel | PretrainedConfig) -> str | None:
    """Why what is written in slots is not what the model says of each text alone; None: it is."""
    return fault_of(model, "slots", lambda sample: _decoding_fault(sample, SlotModel))


def own_cache_fault(model: PreTrainedModel | PretrainedConfig) -> str | None:
    """The same of the cache that the model brings."""
    return fault_of(model, "own cache", lambda sample: _decoding_fault(sample, RowByRow))


def _decoding_fault(sample: Sample, kind: Callable[..., Decoder]) -> str | None:
    """The texts written again, token by token: three rows, of which the last moves into the gap of one that ends."""
    texts, capacity = sample.texts, max(map(len, sample.texts))
    decoder, length = kind(sample.model, slots=len(texts), capacity=capacity), [len(ids) - 4 for ids in texts]
    prompts = [ids[:cut] for ids, cut in zip(texts, length, strict=True)]
    with torch.no_grad(), decoder.writing(prompts, longest=1):
        logits_PV, states = decoder.prefill(prompts)
        for slot, state in enumerate(states):
            decoder.place(slot, state)
        rows = list(range(len(texts)))
        found_BV = logits_PV
        for number in range(4):
            wanted_BV = torch.stack([sample.logits[row][length[row] - 1] for row in rows])
            if fault := difference(found_BV, wanted_BV):
                return fault
            if number == 2:
                decoder.move(len(rows) - 1, 0, length[rows[-1]])
                rows[0] = rows.pop()
            found_BV = decoder.step([texts[row][length[row]] for row in rows], [length[row] for row in rows])
            length = [one + 1 for one in length]
    return None
