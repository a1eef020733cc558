"""Logits of a few rows where nobody asks for a gradient.

Dimension key: R rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.losses.products import logits
from potstill.models.forward import logit_terms


def row_logits(model: PreTrainedModel, hidden_RD: Tensor) -> Tensor:
    """fp32 logits (R, V), as `models.forward.head_logits` defines them."""
    scale, cap = logit_terms(model)
    logits_RV = _product(model.get_output_embeddings(), hidden_RD)
    if scale != 1:  # after the bias, as in the architecture
        logits_RV *= scale
    return logits_RV if cap is None else torch.tanh(logits_RV / cap) * cap


def _product(head: Any, hidden_RD: Tensor) -> Tensor:
    """The head in its own dtype, summed in fp32: widening it first would cost more than a few rows' product."""
    if head.weight.dtype == torch.float32:
        return head(hidden_RD.float())  # which may be packed
    out_RV = torch.empty((len(hidden_RD), len(head.weight)), device=hidden_RD.device)
    logits_RV = logits(hidden_RD.to(head.weight.dtype), head.weight, alpha=1.0, out_CV=out_RV)
    return logits_RV if head.bias is None else logits_RV.add_(head.bias.float())
