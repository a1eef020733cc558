"""What both engines work on: the student's head, the teacher's side, where gradients go, what comes out per row.

Dimension key: N rows, C rows of a chunk, D width, V vocabulary, K stored candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.losses import products
from potstill.losses.divergences import Divergence
from potstill.losses.observed import Observed
from potstill.losses.tiles import Candidates
from potstill.signals import Hidden, Logits, Sampled, Signal, TopK


@dataclass(frozen=True, slots=True)
class Head:
    """Logits are softcap(scale * (h W' + b)) / temperature; `softcap` c is c tanh(x / c) (Gemma), `scale` Cohere's."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None
    temperature: float

    def columns(self, start: int, end: int) -> Head:
        bias_V = None if self.bias_V is None else self.bias_V[start:end]
        return Head(self.weight_VD[start:end], bias_V, self.scale, self.softcap, self.temperature)

    def logits(self, hidden_CD: Tensor, *, out_CV: Tensor) -> Tensor:
        """Written into `out_CV` (fp32), which is returned."""
        alpha = self.scale if self.softcap else self.scale / self.temperature
        products.logits(hidden_CD, self.weight_VD, alpha=alpha, out_CV=out_CV)
        if self.bias_V is not None:
            out_CV.add_(self.bias_V, alpha=alpha)
        if self.softcap:
            out_CV.div_(self.softcap).tanh_().mul_(self.softcap / self.temperature)
        return out_CV

    def softcap_slope(self, z_BV: Tensor) -> Tensor | None:
        """d softcap(x) / dx from the scaled logits; None where there is no soft-capping."""
        if self.softcap is None:
            return None
        return torch.mul(z_BV, self.temperature / self.softcap).square_().neg_().add_(1.0)


@dataclass(slots=True)
class Gradients:
    """Accumulators of dL/dh, dL/dW, dL/db; None where nobody wants it. Weights' gradients are summed in fp32.
    The head's memory is first written by the rows from 0 on: zeroing it would be one more walk through it."""

    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None
    _narrow: Tensor | None = None

    def add(self, head: Head, hidden_CD: Tensor, slope_CV: Tensor, *, row: int, column: int) -> None:
        """Take in dL/d(scaled logits) of the rows from `row` and the vocabulary from `column` on."""
        alpha = head.scale / head.temperature
        rows = slice(row, row + len(slope_CV))
        columns = slice(column, column + slope_CV.shape[1])
        if self.bias_V is not None:
            self.bias_V[columns].add_(slope_CV.sum(0), alpha=alpha)
        dtype = torch.float32 if products.widens(hidden_CD) else hidden_CD.dtype
        factor_CV = self._narrowed(slope_CV, dtype)
        if self.hidden_ND is not None:
            products.add_hidden_gradient(self.hidden_ND[rows], factor_CV, head.weight_VD, alpha=alpha)
        if self.weight_VD is not None:
            products.add_weight_gradient(self.weight_VD[columns], factor_CV, hidden_CD, alpha=alpha, fresh=row == 0)

    def _narrowed(self, slope_CV: Tensor, dtype: torch.dtype) -> Tensor:
        """In the products' dtype, every time in the same memory: an allocation a chunk leaves the heap in pieces."""
        if slope_CV.dtype == dtype:
            return slope_CV
        if self._narrow is None:
            self._narrow = torch.empty_like(slope_CV, dtype=dtype, memory_format=torch.contiguous_format)
        return self._narrow.view(-1)[: slope_CV.numel()].view(slope_CV.shape).copy_(slope_CV)

    def scale(self, factor: Tensor) -> None:
        if factor.device.type == "cpu" and factor.item() == 1:
            return
        for gradient in (self.hidden_ND, self.weight_VD, self.bias_V):
            if gradient is not None:
                gradient.mul_(factor)


def _fine(few: Tensor) -> Tensor:
    return few.float() if few.device.type == "mps" else few.double()  # Apple's GPUs know no float64


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """`weight` times -ln q(target), at temperature 1, from the same logits as the divergence."""

    targets_N: Tensor
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Loss:
    """What is asked for, per row: weight * (scale * divergence + cross-entropy); `scale` is T² or 1."""

    divergence: Divergence
    temperature: float
    t_squared: bool
    cross_entropy: CrossEntropy | None
    weights_N: Tensor | None

    @property
    def scale(self) -> float:
        return self.temperature**2 if self.t_squared else 1.0

    @property
    def targets_N(self) -> Tensor | None:
        return None if self.cross_entropy is None else self.cross_entropy.targets_N

    @property
    def cross_entropy_weight(self) -> float:
        return 0.0 if self.cross_entropy is None else self.cross_entropy.weight


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything a pass needs but the hidden states. `chunk` is what is in memory at once, rows by columns of the
    vocabulary."""

    head: Head
    teacher: Signal
    loss: Loss
    chunk: tuple[int, int]
    observe: bool

    def __post_init__(self) -> None:
        if self.observe and self.chunk[1] < self.vocabulary:
            raise ValueError("the recompute engine observes nothing: raise memory_bytes, or leave out observe")

    @property
    def vocabulary(self) -> int:
        return len(self.head.weight_VD)

    @property
    def dense(self) -> bool:
        return isinstance(self.teacher, Hidden | Logits)

    def teacher_logits(self, rows: slice, columns: slice, *, out_CV: Tensor) -> Tensor:
        """The dense teacher's scaled logits, written into `out_CV`."""
        match self.teacher:
            case Hidden(hidden_ND, head_VD, bias_V, scale, softcap):
                head = Head(head_VD, bias_V, scale, softcap, self.loss.temperature)
                return head.columns(columns.start, columns.stop).logits(hidden_ND[rows], out_CV=out_CV)
            case Logits(logits_NV):
                return out_CV.copy_(logits_NV[rows, columns]).div_(self.loss.temperature)
            case TopK() | Sampled():
                raise AssertionError("a sparse teacher has no logits")

    def candidates(self, rows: slice) -> Candidates:
        """The sparse teacher's probabilities."""
        match self.teacher:
            case TopK(ids_NK, logp_NK, tail=tail):
                logp_CK = _fine(logp_NK[rows])
                return Candidates(ids_NK[rows].long(), logp_CK.exp(), logp_CK, tail)
            case Sampled(ids_NK, counts_NK):
                counts_CK = _fine(counts_NK[rows])
                total_C1 = counts_CK.sum(-1, keepdim=True).clamp(min=1)
                return Candidates(ids_NK[rows].long(), counts_CK / total_C1, None, tail=False)
            case Hidden() | Logits():
                raise AssertionError("a dense teacher has logits")


@dataclass(slots=True)
class Scores:
    """Per row, before weights: the divergence, the cross-entropy with the targets (0 without), what was observed."""

    divergence_N: Tensor
    cross_entropy_N: Tensor
    observed: Observed | None = None

    @classmethod
    def room(cls, count: int, device: torch.device) -> Scores:
        """For `count` rows, to be put in block by block. A list of blocks would do, but its many small tensors, lying
        between the blocks' big ones, would keep glibc from using that memory again: 600 MB instead of 140."""
        return cls(torch.zeros(count, device=device), torch.zeros(count, device=device))

    def put(self, rows: slice, part: Scores) -> None:
        self.divergence_N[rows] = part.divergence_N
        self.cross_entropy_N[rows] = part.cross_entropy_N
        if part.observed is not None:
            self.observed = self.observed or part.observed.room(len(self.divergence_N))
            self.observed.put(rows, part.observed)
