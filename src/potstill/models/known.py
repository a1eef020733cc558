"""Shapes of well-known models, so that a plan can be made before anything is downloaded.

Each line was held against the published number of parameters (`tests/models/test_shapes.py`). A configuration on this
machine goes before the table.
"""

from __future__ import annotations

import re
from dataclasses import replace

from potstill.models.shapes import Shape

_VARIANT = re.compile(r"-(Base|Instruct|it|pt|Instruct-2507|Thinking-2507)$")


def known_shape(name: str) -> Shape | None:
    """Of a hub id; base and instructed variants have the same, and Llama 3.1 goes by two names."""
    return _KNOWN.get(_VARIANT.sub("", name.replace("/Meta-Llama-", "/Llama-")))


def _qwen3(layers: int, width: int, heads: int, inner: int, *, tied: bool) -> Shape:
    return Shape(
        architecture="qwen3",
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=8,
        head_width=128,
        inner=inner,
        vocabulary=151_936,
        tied=tied,
    )


def _llama(layers: int, width: int, heads: tuple[int, int], inner: int, *, vocabulary: int, tied: bool) -> Shape:
    return Shape(
        architecture="llama",
        layers=layers,
        width=width,
        heads=heads[0],
        kv_heads=heads[1],
        head_width=width // heads[0],
        inner=inner,
        vocabulary=vocabulary,
        tied=tied,
    )


def _as_qwen2(shape: Shape) -> Shape:
    return replace(shape, architecture="qwen2", biased=True)


def _gemma3(layers: int, width: int, inner: int) -> Shape:
    return Shape(
        architecture="gemma3_text",
        layers=layers,
        width=width,
        heads=4,
        kv_heads=1,
        head_width=256,
        inner=inner,
        vocabulary=262_144,
        tied=True,
    )


_LLAMA_8B = _llama(32, 4096, (32, 8), 14_336, vocabulary=128_256, tied=False)
_LLAMA_70B = _llama(80, 8192, (64, 8), 28_672, vocabulary=128_256, tied=False)

_KNOWN: dict[str, Shape] = {
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 16, 3072, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(28, 2048, 16, 6144, tied=True),
    "Qwen/Qwen3-4B": _qwen3(36, 2560, 32, 9728, tied=True),
    "Qwen/Qwen3-8B": _qwen3(36, 4096, 32, 12_288, tied=False),
    "Qwen/Qwen3-14B": _qwen3(40, 5120, 40, 17_408, tied=False),
    "Qwen/Qwen3-32B": _qwen3(64, 5120, 64, 25_600, tied=False),
    "Qwen/Qwen2.5-0.5B": _as_qwen2(_llama(24, 896, (14, 2), 4864, vocabulary=151_936, tied=True)),
    "Qwen/Qwen2.5-1.5B": _as_qwen2(_llama(28, 1536, (12, 2), 8960, vocabulary=151_936, tied=True)),
    "Qwen/Qwen2.5-7B": _as_qwen2(_llama(28, 3584, (28, 4), 18_944, vocabulary=152_064, tied=False)),
    "Qwen/Qwen2.5-14B": _as_qwen2(_llama(48, 5120, (40, 8), 13_824, vocabulary=152_064, tied=False)),
    "Qwen/Qwen2.5-32B": _as_qwen2(_llama(64, 5120, (40, 8), 27_648, vocabulary=152_064, tied=False)),
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-70B": _LLAMA_70B,
    "meta-llama/Llama-3.3-70B": _LLAMA_70B,
    "meta-llama/Llama-3.2-1B": _llama(16, 2048, (32, 8), 8192, vocabulary=128_256, tied=True),
    "meta-llama/Llama-3.2-3B": _llama(28, 3072, (24, 8), 8192, vocabulary=128_256, tied=True),
    "HuggingFaceTB/SmolLM2-135M": _llama(30, 576, (9, 3), 1536, vocabulary=49_152, tied=True),
    "HuggingFaceTB/SmolLM2-360M": _llama(32, 960, (15, 5), 2560, vocabulary=49_152, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B": _llama(24, 2048, (32, 32), 8192, vocabulary=49_152, tied=True),
    "google/gemma-3-270m": _gemma3(18, 640, 2048),
    "google/gemma-3-1b": _gemma3(26, 1152, 6912),
}
