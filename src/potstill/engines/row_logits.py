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
    """fp32 logits (R, V), as `models.forward.head_logits` defines them. The head is multiplied in its own dtype and
    summed in fp32: widening it first would cost more than a few rows' product."""
    head: Any = model.get_output_embeddings()
    scale, cap = logit_terms(model)
    out_RV = torch.empty((len(hidden_RD), len(head.weight)), device=hidden_RD.device)
    # The factor comes after the bias, as in the architecture.
    logits_RV = logits(hidden_RD.to(head.weight.dtype), head.weight, alpha=1.0, out_CV=out_RV)
    if head.bias is not None:
        logits_RV += head.bias.float()
    if scale != 1:
        logits_RV *= scale
    return logits_RV if cap is None else torch.tanh(logits_RV / cap) * cap
