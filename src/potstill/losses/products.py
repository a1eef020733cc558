"""The matrix products of both engines, each in the form that the processor does best.

Half-precision products are summed in fp32 whatever the inputs are: a logit rounded to bf16 would cost up to 1.6 % of a
probability. A CPU that has no bf16 arithmetic multiplies bf16 several times slower than fp32; there, slabs of the head
are widened as they are needed.

Dimension key: C rows of a chunk, D width, V vocabulary, W vocabulary of a slab.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from potstill.losses.native import bf16_product, fits, has_avx512_bf16

_WIDENED = 2048  # outcomes of the head that are fp32 at once: their copy stays in the cache
_ROUNDED = 8192  # outcomes whose gradient is rounded to half precision at once


def widens(x: Tensor) -> bool:
    """Whether half-precision `x` is multiplied as fp32: on a CPU, unless it is bf16 and there is AVX512-BF16."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    return x.dtype == torch.float16 or not has_avx512_bf16()


def logits(hidden_CD: Tensor, weight_VD: Tensor, *, alpha: float, out_CV: Tensor) -> Tensor:
    """out = alpha * h W', in fp32."""
    if hidden_CD.dtype == torch.float32:
        return torch.addmm(out_CV, hidden_CD, weight_VD.T, beta=0, alpha=alpha, out=out_CV)
    if hidden_CD.device.type == "cuda":
        torch.mm(hidden_CD, weight_VD.T, out_dtype=torch.float32, out=out_CV)
        return out_CV if alpha == 1 else out_CV.mul_(alpha)
    if fits(hidden_CD, weight_VD) and (native := bf16_product()):
        native(hidden_CD, weight_VD, alpha, out_CV)
        return out_CV
    if widens(hidden_CD):
        wide_CD = hidden_CD.float()
        for slab in _slabs(len(weight_VD), _WIDENED):
            part_CW = out_CV[:, slab]
            torch.addmm(part_CW, wide_CD, weight_VD[slab].float().T, beta=0, alpha=alpha, out=part_CW)
        return out_CV
    return torch.mul(hidden_CD @ weight_VD.T, alpha, out=out_CV)


def add_hidden_gradient(sum_CD: Tensor, slope_CV: Tensor, weight_VD: Tensor, *, alpha: float) -> None:
    """sum += alpha * slope W. The sum's own dtype: one rounding a call."""
    if not widens(weight_VD):
        sum_CD.addmm_(slope_CV, weight_VD, alpha=alpha)
        return
    found_CD = torch.zeros_like(sum_CD, dtype=torch.float32)
    for slab in _slabs(len(weight_VD), _WIDENED):
        found_CD.addmm_(slope_CV[:, slab], weight_VD[slab].float())
    sum_CD.add_(found_CD, alpha=alpha)


def add_weight_gradient(
    sum_VD: Tensor, slope_CV: Tensor, hidden_CD: Tensor, *, alpha: float, fresh: bool = False
) -> None:
    """sum += alpha * slope' h, where the sum is fp32; a `fresh` sum holds nothing yet, not even zeros. A half-precision
    product is rounded once and added in fp32, a slab at a time to save its memory."""
    if sum_VD.dtype == slope_CV.dtype:
        sum_VD.addmm_(slope_CV.T, hidden_CD.to(sum_VD.dtype), alpha=alpha, beta=0 if fresh else 1)
        return
    part_WD = hidden_CD.new_empty((min(_ROUNDED, len(sum_VD)), hidden_CD.shape[1]))
    for slab in _slabs(len(sum_VD), _ROUNDED):
        slope_CW, sum_WD = slope_CV[:, slab], sum_VD[slab]
        if fresh:
            sum_WD.zero_()
        sum_WD.add_(torch.mm(slope_CW.T, hidden_CD, out=part_WD[: slope_CW.shape[1]]), alpha=alpha)


def _slabs(vocabulary: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, vocabulary)) for start in range(0, vocabulary, size))
