"""What is done to a block of student logits: each row gives its numbers, and the logits become the gradient on
themselves, in place.

Logits come in scaled (logit scale, soft-capping, 1/T); what they become is dL/d(scaled logits). All arithmetic is fp32;
sums over the vocabulary are torch's cascaded ones (one long fp32 dot product would shift the loss by 3e-5).

Dimension key: B rows of the block, V vocabulary, K stored candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.losses.divergences import Divergence, Terms, Tile, terms_of

_BLOCK_NUMBERS = 400_000
"""Numbers of a block on a CPU, 1.6 MB: its five or so work tensors stay in the cache."""

TAIL_FLOOR = 1e-7
"""Least mass of a top-k's tail: fp32 log-probabilities know no better, and a tail of 0 makes KL(q || p) infinite."""


@dataclass(frozen=True, slots=True)
class Softmax:
    """Probabilities of some rows with what normalised them, kept apart: rounding their log-sum-exp to one fp32 number
    would shift all of a row's probabilities alike."""

    p_BV: Tensor
    max_B: Tensor
    total_B: Tensor

    @property
    def lse_B(self) -> Tensor:
        return self.total_B.log().add_(self.max_B)

    def less(self, other: Softmax) -> Tensor:
        """This log-sum-exp less the other's, (B,)."""
        return (self.max_B - other.max_B).add_((self.total_B / other.total_B).log_())


@dataclass(frozen=True, slots=True)
class Candidates:
    """A sparse teacher's rows: ids and probabilities, so few that float64 costs nothing and keeps 1 - sum of p exact.
    `logp_BK` is None for counts, whose entropy nobody knows."""

    ids_BK: Tensor
    p_BK: Tensor
    logp_BK: Tensor | None
    tail: bool


def blocks(z_CV: Tensor) -> Iterator[slice]:
    """Rows that are worked on together: as many as the cache holds on a CPU, all of them elsewhere."""
    count, width = z_CV.shape
    size = max(1, _BLOCK_NUMBERS // width) if z_CV.device.type == "cpu" else count
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def softmax(z_BV: Tensor) -> Softmax:
    max_B = z_BV.amax(-1)
    p_BV = torch.sub(z_BV, max_B.unsqueeze(-1)).exp_()
    total_B = p_BV.sum(-1)
    return Softmax(p_BV.mul_(total_B.reciprocal().unsqueeze(-1)), max_B, total_B)


def dense(z_BV: Tensor, student: Softmax, teacher_z_BV: Tensor, teacher: Softmax, divergence: Divergence) -> Tensor:
    """Against a full distribution: the value (B,); `z_BV` becomes its gradient. `teacher.p_BV` is used up."""
    value_B, slope_BV, mean_B = _dense_terms(z_BV, student, teacher_z_BV, teacher, divergence)
    torch.addcmul(slope_BV, student.p_BV, mean_B.unsqueeze(-1), value=-1, out=z_BV)
    return value_B


def _dense_terms(
    z_BV: Tensor, student: Softmax, teacher_z_BV: Tensor, teacher: Softmax, divergence: Divergence
) -> Terms:
    shift_B1 = student.less(teacher).unsqueeze(-1)
    on_cpu = z_BV.device.type == "cpu"  # elsewhere looking at a value would wait for the device

    def terms(*, zeros: bool) -> Terms:
        d_BV = torch.sub(teacher_z_BV, z_BV).add_(shift_B1)  # this order keeps d exact where the two nearly agree
        return terms_of(divergence, Tile(student.p_BV, teacher.p_BV, d_BV, zeros=zeros))

    found = terms(zeros=not on_cpu)
    if on_cpu and not found[0].isfinite().all():
        return terms(zeros=True)
    return found


def sparse(z_BV: Tensor, student: Softmax, teacher: Candidates, divergence: Divergence) -> Tensor:
    """Against the teacher's candidates: the value (B,); `z_BV` becomes its gradient."""
    lse_B = student.total_B.to(teacher.p_BK.dtype).log().add_(student.max_B)
    logq_BK = z_BV.gather(-1, teacher.ids_BK) - lse_B.unsqueeze(-1)
    if not teacher.tail:
        torch.mul(student.p_BV, teacher.p_BK.sum(-1, keepdim=True).to(z_BV.dtype), out=z_BV)
        z_BV.scatter_add_(-1, teacher.ids_BK, -teacher.p_BK.to(z_BV.dtype))
        return candidate_gap(logq_BK, teacher).to(z_BV.dtype)
    tail_q_B1 = mass_outside(student.p_BV, teacher.ids_BK).to(logq_BK.dtype)
    found = against_buckets(logq_BK, tail_q_B1, teacher, divergence)
    torch.mul(student.p_BV, found.tail_factor_B.to(z_BV.dtype).unsqueeze(-1), out=z_BV)
    z_BV.scatter_(-1, teacher.ids_BK, found.slope_BK.to(z_BV.dtype))
    return found.value_B.to(z_BV.dtype)


def candidate_gap(logq_BK: Tensor, teacher: Candidates) -> Tensor:
    """Forward KL without a tail: the sum of p (ln p - ln q), or of -p ln q where p are frequencies; shape (B,)."""
    gap_BK = -logq_BK if teacher.logp_BK is None else teacher.logp_BK - logq_BK
    return torch.where(teacher.p_BK == 0, 0.0, teacher.p_BK * gap_BK).sum(-1)


@dataclass(frozen=True, slots=True)
class Bucketed:
    """A divergence over the candidates and their tail. Its gradient on the logits is `slope_BK` at the candidates and
    `tail_factor_B` times q elsewhere: an outcome in the tail has its bucket's slope, shared out by q."""

    value_B: Tensor
    slope_BK: Tensor
    tail_factor_B: Tensor


def against_buckets(logq_BK: Tensor, tail_q_B1: Tensor, teacher: Candidates, divergence: Divergence) -> Bucketed:
    tile = buckets(logq_BK, tail_q_B1, teacher)
    value_B, slope_Bk, mean_B = terms_of(divergence, tile)
    q_BK, tail_B = tile.q_BV[:, :-1], tile.q_BV[:, -1]
    tail_slope_B = torch.where(tail_B > 0, slope_Bk[:, -1] / tail_B, 0.0)
    return Bucketed(value_B, slope_Bk[:, :-1] - q_BK * mean_B.unsqueeze(-1), tail_slope_B - mean_B)


def buckets(logq_BK: Tensor, tail_q_B1: Tensor, teacher: Candidates) -> Tile:
    """The candidates and the tail as K + 1 outcomes."""
    assert teacher.logp_BK is not None
    tail_p_B1 = (1 - teacher.p_BK.sum(-1, keepdim=True)).clamp(min=TAIL_FLOOR)
    tail_p_B1 = torch.where(tail_q_B1 > 0, tail_p_B1, 0.0)  # K = V: there is no tail
    logq_Bk = torch.cat([logq_BK, tail_q_B1.log()], -1)
    logq_Bk = logq_Bk - logq_Bk.logsumexp(-1, keepdim=True)  # an fp32 sum of 1 + 1e-7 would be all of a small value
    logp_Bk = torch.cat([teacher.logp_BK, tail_p_B1.log()], -1)
    p_Bk = torch.cat([teacher.p_BK, tail_p_B1], -1)
    return Tile(logq_Bk.exp(), p_Bk, logp_Bk - logq_Bk, zeros=True)


def mass_outside(p_BV: Tensor, ids_BK: Tensor) -> Tensor:
    """Shape (B, 1), summed over the others: 1 - sum of p would lose a small tail to rounding."""
    if ids_BK.shape[-1] == p_BV.shape[-1]:
        return p_BV.new_zeros((len(p_BV), 1))
    p_BK = p_BV.gather(-1, ids_BK)
    p_BV.scatter_(-1, ids_BK, 0.0)
    tail_B1 = p_BV.sum(-1, keepdim=True)
    p_BV.scatter_(-1, ids_BK, p_BK)
    return tail_B1
