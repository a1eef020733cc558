"""What a `config.json` says of a causal language model, whichever names its architecture has for it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.errors import InputError

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers_block_type")  # the last one lists them
_HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model", "emb_dim")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "context_length")
DEQUANTISED = ("mxfp4", "fp8")
"""Quantised weights that transformers turns into plain ones without another package."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """That of the language model, where it is one of several parts (with those that read images or sounds)."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def layers_of(config: Mapping[str, Any]) -> int | None:
    return _number(config, _LAYERS)


def hidden_of(config: Mapping[str, Any]) -> int | None:
    return _number(config, _HIDDEN)


def vocabulary_of(config: Mapping[str, Any]) -> int | None:
    return _number(config, ("vocab_size",))


def positions_of(config: Mapping[str, Any]) -> int | None:
    """The most tokens of a text that the model was made for; None where nothing bounds them."""
    return _number(config, _POSITIONS)


def require_weights_as_numbers(config: Mapping[str, Any], *, name: str) -> None:
    """Raises InputError for quantised weights, but for those that are made plain when they are loaded."""
    how = config.get("quantization_config") or text_config(config).get("quantization_config")
    if not isinstance(how, dict):
        return
    method = how.get("quant_method") or ("bitsandbytes" if how.get("load_in_4bit") or how.get("load_in_8bit") else None)
    if method in DEQUANTISED:
        return
    bits = how.get("bits") or (4 if how.get("load_in_4bit") else 8 if how.get("load_in_8bit") else None)
    told = f"{method or 'in a way its config.json does not name'}" + (f", {bits} bits" if bits else "")
    raise InputError(
        f"the weights of '{name}' are quantised ({told}), which is not read in this process",
        way_out="give the model that it was made from, or serve it (vLLM) where it is a teacher",
    )


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, list):
            return len(value)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, int):
            return value
    return None
