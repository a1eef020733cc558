"""Products of a few rows on a CPU: weights laid out once for the processor, for the many tokens that follow.

A decoder multiplies each of its matrices with a handful of rows per token. For so few, MKL spends more time on bringing
an fp32 matrix into the order that its kernels read than on the product; oneDNN takes it ready-made.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_WORTH_IT = 2**17
"""Numbers in a matrix: smaller ones are in the cache already, and the call itself costs more."""
_ROWS = 8
"""The rows that the layout is made for; others are right too."""


@contextmanager
def packed(model: PreTrainedModel) -> Generator[None]:
    """While it lasts, the model's larger fp32 linear layers on a CPU multiply from copies of their weights in oneDNN's
    order: sums in another order, so the last bits differ. Elsewhere, and under autocast, it does nothing. The weights
    must not change meanwhile, and no gradient is known. Memory: what the copied layers take."""
    layers = [module for module in model.modules() if type(module) is nn.Linear and _worth_it(module)]
    kernels: Any = torch.ops.mkldnn
    for layer in layers:
        weight = kernels._reorder_linear_weight(layer.weight.detach(), _ROWS)
        layer.forward = partial(_product, kernels._linear_pointwise, weight, layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _product(kernel: Any, weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
    return kernel(input, weight, bias, "none", [], "")


def _worth_it(layer: nn.Linear) -> bool:
    """An ordinary matrix (no shard of one), large, in fp32, on a CPU that oneDNN serves."""
    data = layer.weight.data
    plain = type(data) is Tensor and data.device.type == "cpu" and data.dtype == torch.float32
    large = data.numel() >= _WORTH_IT
    return plain and large and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")
