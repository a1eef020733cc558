"""Keys and values in slots: buffers made once, rows of different length side by side, no padding on the left.

Dimension key: S slots, B active rows (always the first B slots), H key heads, L tokens, C capacity, E head width.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from potstill.errors import InputError

KeysValues = list[tuple[Tensor, Tensor]]
"""One (keys, values) a layer."""


@dataclass(frozen=True, slots=True)
class Masks:
    """How a model wants to be told who sees whom: for its full layers, its sliding ones, or both."""

    full: bool
    window: int | None
    additive: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> Masks:
        """Raises InputError where the model's attention is not one that slots can serve."""
        config: Any = model.config
        layers = DynamicCache(config=config).layers
        kinds = set(getattr(config, "layer_types", None) or ())
        standard = (
            all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
            and kinds <= {"full_attention", "sliding_attention"}
            and not getattr(config, "use_bidirectional_attention", False)
            and "position_ids" in inspect.signature(type(model.base_model).forward).parameters
            and not config.is_encoder_decoder
        )
        if not standard:
            raise InputError(
                "rollouts need causal attention with keys, values and position ids in every layer; "
                f"{config.model_type} has other layers",
                way_out="let a server write its answers",
            )
        how = config._attn_implementation
        if how not in ("sdpa", "eager"):
            raise InputError(f"rollouts cannot mask the attention '{how}'", way_out="load the model with 'sdpa'")
        windows = {layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)}
        full = not layers or any(type(layer) is DynamicLayer for layer in layers)
        return cls(full, next(iter(windows), None), how == "eager")

    def over(self, at_BL: Tensor, keys: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """For queries at the positions `at_BL` and keys at 0 to `keys` - 1: what `forward` takes as its mask."""
        key_K = torch.arange(keys, device=at_BL.device)
        seen = key_K <= at_BL[:, None, :, None]
        if self.window is None:
            return self._as_wanted(seen, dtype)
        near = self._as_wanted(seen & (key_K > at_BL[:, None, :, None] - self.window), dtype)
        if not self.full:
            return near
        return {"full_attention": self._as_wanted(seen, dtype), "sliding_attention": near}

    def _as_wanted(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        if not self.additive:
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


class SlotLayer(DynamicLayer):
    """One layer's buffers (S, H, C, E)."""

    def __init__(self, keys: Tensor, values: Tensor, *, slots: int, capacity: int) -> None:
        super().__init__()
        self._keys = keys.new_zeros((slots, keys.shape[1], capacity, keys.shape[3]))
        self._values = values.new_zeros((slots, values.shape[1], capacity, values.shape[3]))
        self.row_B = self.at_B = torch.empty(0, dtype=torch.long)
        self.longest = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes one token per row at its own position and lends the active rows up to the longest."""
        self._keys[self.row_B, :, self.at_B] = key_states[:, :, 0]
        self._values[self.row_B, :, self.at_B] = value_states[:, :, 0]
        rows = len(self.row_B)
        return self._keys[:rows, :, : self.longest], self._values[:rows, :, : self.longest]

    def write(self, slot: int, keys_HLE: Tensor, values_HLE: Tensor) -> None:
        self._keys[slot, :, : keys_HLE.shape[1]] = keys_HLE
        self._values[slot, :, : values_HLE.shape[1]] = values_HLE

    def move(self, source: int, target: int, length: int) -> None:
        self.write(target, self._keys[source, :, :length], self._values[source, :, :length])


class SlotCache(Cache):
    """What `forward` is given as `past_key_values` when one token per row is decoded."""

    def __init__(self, like: KeysValues, *, slots: int, capacity: int) -> None:
        self._slot_layers = [SlotLayer(keys, values, slots=slots, capacity=capacity) for keys, values in like]
        super().__init__(layers=list(self._slot_layers))

    def expect(self, at_B: Tensor, longest: int) -> None:
        """The next `forward` writes row b at position `at_B[b]` and reads `longest` keys."""
        row_B = torch.arange(len(at_B), device=at_B.device)
        for layer in self._slot_layers:
            layer.row_B, layer.at_B, layer.longest = row_B, at_B, longest

    def write(self, slot: int, prompt: KeysValues) -> None:
        """A prompt's keys and values (H, L, E) into a slot."""
        for layer, (keys_HLE, values_HLE) in zip(self._slot_layers, prompt, strict=True):
            layer.write(slot, keys_HLE, values_HLE)

    def move(self, source: int, target: int, length: int) -> None:
        for layer in self._slot_layers:
            layer.move(source, target, length)
