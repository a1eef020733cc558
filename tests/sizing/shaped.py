"""transformers' configuration of a shape."""

from __future__ import annotations

from typing import Any

from potstill.models.shapes import Shape


def config_of(shape: Shape) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        shape.architecture,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        **({"attention_bias": shape.biased} if shape.architecture != "qwen2" else {}),
    )
