"""The causal language model inside of what transformers loads: some read images or sounds too."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from potstill.errors import InputError


def text_model(model: PreTrainedModel, *, name: str) -> PreTrainedModel:
    """The model itself, or its language model with the same weights, without the towers that a text does not pass. Its
    `base_model` is all but the head. Raises InputError where it has no such part."""
    inner = model.config.get_text_config(decoder=True)
    if inner is not model.config:
        model = _language_model(model, inner, name)
    if model.base_model is model and hasattr(model, "model"):
        model.base_model_prefix = "model"  # Llama 4's class names another one, which it has not
    return model


def _language_model(model: PreTrainedModel, config: Any, name: str) -> PreTrainedModel:
    body: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    try:
        with torch.device("meta"):
            text = AutoModelForCausalLM.from_config(config)
    except ValueError:
        text = None
    if text is None or type(text.base_model) is not type(body):
        raise InputError(
            f"'{name}' is a {model.config.model_type} model, of which transformers has no causal language model",
            way_out="give a model of text alone",
        )
    setattr(text, text.base_model_prefix, body)
    text.set_output_embeddings(head)
    text.config, text.generation_config = body.config, model.generation_config
    text.config.tie_word_embeddings = head.weight is body.get_input_embeddings().weight
    return text.eval()
