"""One model as slots drive it: its prompts, its keys and values, its masks. What an answer is, `slots.py` knows.

Dimension key: P prompts computed together, B active rows, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from potstill.engines.local import KeptPrefix, shared_prefix
from potstill.engines.row_logits import row_logits
from potstill.engines.slot_cache import KeysValues, Masks, SlotCache
from potstill.errors import InputError
from potstill.models.packed import packed
from potstill.text.tokens import Ids

_WORTH_KEEPING = 16
"""Tokens of a shared beginning, where it is half of the prompts."""
_WORTH_PACKING = 16
"""Tokens of the longest answer: bringing the weights into order costs about what four steps gain."""


class SlotModel:
    """A model with `slots` rows of `capacity` tokens, made at the first `place` and kept. `prefilled` counts the prompt
    tokens computed so far."""

    def __init__(self, model: PreTrainedModel, *, slots: int, capacity: int) -> None:
        self.model, self._masks = model, Masks.of(model)
        self._slots, self._capacity = slots, capacity
        self._cache: SlotCache | None = None
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

    def prefill(self, prompts: Sequence[Ids]) -> tuple[Tensor, list[KeysValues]]:
        """Logits of each prompt's next token (P, V), and the prompts' keys and values; padded on the right."""
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
        """Logits (B, V) of the next token of the first B slots: each holds `length_B` tokens and reads `last_B`."""
        assert self._cache is not None
        at_B = torch.tensor(length_B, device=self.model.device)
        longest = max(length_B) + 1
        self._cache.expect(at_B, longest)
        last_B1 = torch.tensor(last_B, device=self.model.device).unsqueeze(-1)
        hidden_B1D = self._forward(last_B1, at_B.unsqueeze(-1), longest, self._cache)
        return row_logits(self.model, hidden_B1D[:, 0])

    def move(self, source: int, target: int, length: int) -> None:
        """What a slot holds into another one."""
        assert self._cache is not None
        self._cache.move(source, target, length)

    def _beginning(self, prompts: Sequence[Ids]) -> KeptPrefix | None:
        """What the prompts begin with, where that saves something."""
        shared = shared_prefix(prompts)
        if len(prompts) < 2 or len(shared) < max(_WORTH_KEEPING, sum(map(len, prompts)) / len(prompts) / 2):
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
