"""What a decoder's configuration says of its size: every parameter is counted, no weight is read and no torch loaded.

Only architectures whose count is exact are known: attention with grouped heads, a gated feed-forward block, RMS norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_OF_GGUF = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`width` is that of the residual stream, `inner` of the feed-forward block, `head_width` of one attention head."""

    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int
    tied: bool
    biased: bool = False
    """Whether attention's linear maps into heads add a bias (out of them too, in llama's code)."""

    @property
    def queries(self) -> int:
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def norms(self) -> int:
        """Norms of a layer that have the width of the residual stream."""
        return 4 if self.architecture == "gemma3_text" else 2

    @property
    def head_norms(self) -> bool:
        """Whether queries and keys are normalised head by head."""
        return self.architecture in ("qwen3", "gemma3_text")

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """The linear maps of a layer, (in, out), by the last part of their names."""
        return {
            "q_proj": (self.width, self.queries),
            "k_proj": (self.width, self.keys),
            "v_proj": (self.width, self.keys),
            "o_proj": (self.queries, self.width),
            "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
        }

    @property
    def per_layer(self) -> int:
        bias = self.queries + 2 * self.keys if self.biased else 0
        if self.biased and self.architecture != "qwen2":
            bias += self.width
        norms = self.norms * self.width + (2 * self.head_width if self.head_norms else 0)
        return self.matrices_per_layer + bias + norms

    @property
    def matrices_per_layer(self) -> int:
        return sum(before * after for before, after in self.maps.values())

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """Counted once where embeddings and head are tied."""
        return self.layers * self.per_layer + self.embeddings * (1 if self.tied else 2) + self.width

    def cut(self, layers: int) -> Shape:
        return replace(self, layers=layers)


def shape_of_config(config: Mapping[str, Any]) -> Shape | None:
    """Of a `config.json`; None for an architecture that is not counted here, or one that leaves a number out."""
    architecture = str(config.get("model_type"))
    try:
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        if architecture not in _ARCHITECTURES or config.get("mlp_bias"):
            return None
        return Shape(
            architecture=architecture,
            layers=int(config["num_hidden_layers"]),
            width=width,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or width // heads),
            inner=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", architecture == "gemma3_text")),
            biased=architecture == "qwen2" or bool(config.get("attention_bias")),
        )
    except (KeyError, TypeError, ValueError):
        return None


def shape_of_gguf(values: Mapping[str, object], embedding: tuple[int, ...], *, tied: bool) -> Shape | None:
    """Of a GGUF header's keys and the shape (vocabulary, width) of its embeddings; None as for a configuration."""
    named = str(values.get("general.architecture"))

    def key(name: str) -> object:
        return values.get(f"{named}.{name}")

    counts = [key(name) for name in ("block_count", "attention.head_count", "feed_forward_length")]
    layers, heads, inner = (count if isinstance(count, int) else 0 for count in counts)
    kv_heads, head_width = key("attention.head_count_kv"), key("attention.key_length")
    if named not in _OF_GGUF or not (layers and heads and inner):
        return None
    return Shape(
        architecture=_OF_GGUF[named],
        layers=layers,
        width=embedding[1],
        heads=heads,
        kv_heads=kv_heads if isinstance(kv_heads, int) else heads,
        head_width=head_width if isinstance(head_width, int) else embedding[1] // heads,
        inner=inner,
        vocabulary=embedding[0],
        tied=tied,
        biased=named == "qwen2",
    )
