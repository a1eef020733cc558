"""One forward pass in two halves: hidden states of the positions asked for, then the head on those rows alone.

Dimension key: B sequences, L tokens, R rows kept, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel


def hidden_states(model: PreTrainedModel, ids_BL: Tensor, *, cache: Any = None) -> Tensor:
    """Last hidden states (B, L, D), final norm applied.

    Shorter sequences are padded on the right: under causal attention no real token sees a pad, so no mask is needed.
    """
    return model.base_model(input_ids=ids_BL, past_key_values=cache, use_cache=cache is not None).last_hidden_state


def head_logits(model: PreTrainedModel, hidden_RD: Tensor) -> Tensor:
    """fp32 logits (R, V) of the rows that somebody reads, with the architecture's own scaling and soft-capping."""
    head: Any = model.get_output_embeddings()
    bias = None if head.bias is None else head.bias.float()
    logits_RV = F.linear(hidden_RD.float(), head.weight.float(), bias)
    config = model.config
    if getattr(config, "logit_scale", None):  # Cohere
        logits_RV = logits_RV * config.logit_scale
    if getattr(config, "logits_scaling", None):  # Granite
        logits_RV = logits_RV / config.logits_scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits_RV = torch.tanh(logits_RV / cap) * cap
    return logits_RV
