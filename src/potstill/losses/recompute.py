"""The low-memory engine: a tile of rows by columns of the vocabulary at a time, every logit computed three times
(normalise, measure, push back). What is kept of a row is a handful of numbers.

The online log-sum-exp is Milakov and Gimelshein's (2018); Wijmans et al. 2024 (Cut Cross-Entropy) apply it to the head.

Dimension key: C rows of a chunk, B rows of a block, W columns of a tile, D width, K stored candidates, k with the tail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.losses.divergences import Tile, terms_of
from potstill.losses.problem import Gradients, Head, Problem, Scores
from potstill.losses.tiles import Candidates, against_buckets, blocks, candidate_gap


def recompute(problem: Problem, hidden_ND: Tensor, gradients: Gradients, factor_N: Tensor | None) -> Scores:
    """As `stored`, in less memory and more time; it observes nothing."""
    count, (size, width) = len(hidden_ND), problem.chunk
    tiles_2CW = torch.empty((2 if problem.dense else 1, min(size, count), width), device=hidden_ND.device)
    scores = Scores.room(count, hidden_ND.device)
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        chunk = _Chunk(problem, rows, hidden_ND[rows], tiles_2CW)
        factor_C = None if factor_N is None else factor_N[rows]
        scores.put(rows, _dense(chunk, gradients, factor_C) if problem.dense else _sparse(chunk, gradients, factor_C))
    return scores


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some rows, whose logits can be had again and again, a tile of columns at a time."""

    problem: Problem
    rows: slice
    hidden_CD: Tensor
    tiles_2CW: Tensor

    @property
    def count(self) -> int:
        return len(self.hidden_CD)

    def columns(self) -> Iterator[slice]:
        total, width = self.problem.vocabulary, self.tiles_2CW.shape[-1]
        return (slice(start, min(start + width, total)) for start in range(0, total, width))

    def head(self, columns: slice) -> Head:
        return self.problem.head.columns(columns.start, columns.stop)

    def student(self, columns: slice) -> Tensor:
        out_CW = self.tiles_2CW[0, : self.count, : columns.stop - columns.start]
        return self.head(columns).logits(self.hidden_CD, out_CV=out_CW)

    def teacher(self, columns: slice) -> Tensor:
        out_CW = self.tiles_2CW[1, : self.count, : columns.stop - columns.start]
        return self.problem.teacher_logits(self.rows, columns, out_CV=out_CW)

    def column(self, value: float = 0.0) -> Tensor:
        return torch.full((self.count,), value, device=self.hidden_CD.device)


class _RunningLse:
    """Log-sum-exp of logits that come a tile at a time."""

    def __init__(self, chunk: _Chunk) -> None:
        self._max_C = chunk.column(-math.inf)
        self._total_C = chunk.column()

    def add(self, rows: slice, z_BW: Tensor) -> None:
        max_B = torch.maximum(self._max_C[rows], z_BW.amax(-1))
        shift_B = max_B.clamp(min=torch.finfo(torch.float32).min)  # all -inf so far: nothing to rescale
        self._total_C[rows] *= (self._max_C[rows] - shift_B).exp_()
        self._total_C[rows] += torch.sub(z_BW, shift_B.unsqueeze(-1)).exp_().sum(-1)
        self._max_C[rows] = max_B

    def value_C(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._total_C.to(dtype).log() + self._max_C

    def less(self, other: _RunningLse) -> Tensor:
        """This log-sum-exp less the other's."""
        return (self._max_C - other._max_C) + (self._total_C / other._total_C).log()

    def softmax(self, rows: slice, z_BW: Tensor) -> Tensor:
        """Not exp(z - lse): rounding the log-sum-exp would shift all probabilities of a row alike."""
        shifted_BW = torch.sub(z_BW, self._max_C[rows].unsqueeze(-1))
        return shifted_BW.exp_().mul_(self._total_C[rows].reciprocal().unsqueeze(-1))


class _Hard:
    """Cross-entropy with one right token per row, at temperature 1, beside a divergence at another."""

    def __init__(self, chunk: _Chunk) -> None:
        targets_N = chunk.problem.loss.targets_N
        self._targets_C = None if targets_N is None else targets_N[chunk.rows]
        self._temperature = chunk.problem.loss.temperature
        self._pull = chunk.problem.loss.cross_entropy_weight * self._temperature
        self._lse = _RunningLse(chunk)
        self._z_C = chunk.column()

    def see(self, rows: slice, columns: slice, z_BW: Tensor) -> None:
        if self._targets_C is None:
            return
        self._lse.add(rows, z_BW * self._temperature)
        row_J, _, local_J = _inside(self._targets_C[rows].unsqueeze(-1), columns)
        self._z_C[rows][row_J] = z_BW[row_J, local_J] * self._temperature

    def value_C(self) -> Tensor:
        return torch.zeros_like(self._z_C) if self._targets_C is None else self._lse.value_C() - self._z_C

    def push(self, rows: slice, columns: slice, z_BW: Tensor, slope_BW: Tensor) -> None:
        """Add the gradient to `slope_BW`; `z_BW` are the logits again, and another tensor."""
        if self._targets_C is None:
            return
        slope_BW.add_(self._lse.softmax(rows, z_BW * self._temperature), alpha=self._pull)
        row_J, _, local_J = _inside(self._targets_C[rows].unsqueeze(-1), columns)
        slope_BW[row_J, local_J] -= self._pull


def _dense(chunk: _Chunk, gradients: Gradients, factor_C: Tensor | None) -> Scores:
    student, teacher, hard = _RunningLse(chunk), _RunningLse(chunk), _Hard(chunk)
    for columns in chunk.columns():
        z_CW, teacher_CW = chunk.student(columns), chunk.teacher(columns)
        for rows in blocks(z_CW):
            student.add(rows, z_CW[rows])
            teacher.add(rows, teacher_CW[rows])
            hard.see(rows, columns, z_CW[rows])
    gap_C = student.less(teacher)

    def tile(rows: slice, z_CW: Tensor, teacher_CW: Tensor) -> Tile:
        d_BW = torch.sub(teacher_CW[rows], z_CW[rows]).add_(gap_C[rows].unsqueeze(-1))
        return Tile(student.softmax(rows, z_CW[rows]), teacher.softmax(rows, teacher_CW[rows]), d_BW, zeros=True)

    value_C, mean_C = chunk.column(), chunk.column()
    for columns in chunk.columns():
        z_CW, teacher_CW = chunk.student(columns), chunk.teacher(columns)
        for rows in blocks(z_CW):
            value_B, _, mean_B = terms_of(chunk.problem.loss.divergence, tile(rows, z_CW, teacher_CW))
            value_C[rows] += value_B
            mean_C[rows] += mean_B
    for columns in chunk.columns():
        z_CW, teacher_CW = chunk.student(columns), chunk.teacher(columns)
        for rows in blocks(z_CW):
            here = tile(rows, z_CW, teacher_CW)
            _, slope_BW, _ = terms_of(chunk.problem.loss.divergence, here)
            slope_BW.addcmul_(here.q_BV, mean_C[rows].unsqueeze(-1), value=-1)
            slope_BW = _settled(chunk, z_CW[rows], slope_BW, hard, (rows, columns))
            _replace(z_CW[rows], slope_BW, factor_C, rows)
        gradients.add(chunk.head(columns), chunk.hidden_CD, z_CW, row=chunk.rows.start, column=columns.start)
    return Scores(value_C, hard.value_C(), None)


def _sparse(chunk: _Chunk, gradients: Gradients, factor_C: Tensor | None) -> Scores:
    teacher = chunk.problem.candidates(chunk.rows)
    running, hard = _RunningLse(chunk), _Hard(chunk)
    found_CK = torch.zeros(teacher.ids_BK.shape, device=teacher.ids_BK.device)
    for columns in chunk.columns():
        z_CW = chunk.student(columns)
        for rows in blocks(z_CW):
            hard.see(rows, columns, z_CW[rows])
            row_J, slot_J, local_J = _inside(teacher.ids_BK[rows], columns)
            found_CK[rows][row_J, slot_J] = z_CW[rows][row_J, local_J]
            if teacher.tail:
                z_CW[rows][row_J, local_J] = -math.inf  # what runs on is the tail
            running.add(rows, z_CW[rows])
    sides = _against_candidates(chunk, teacher, found_CK, running)
    for columns in chunk.columns():
        z_CW = chunk.student(columns)
        for rows in blocks(z_CW):
            slope_BW = running.softmax(rows, z_CW[rows]).mul_(sides.q_factor_C[rows].unsqueeze(-1))
            row_J, slot_J, local_J = _inside(teacher.ids_BK[rows], columns)
            slope_BW.index_put_((row_J, local_J), sides.slope_CK[rows][row_J, slot_J], accumulate=not teacher.tail)
            slope_BW = _settled(chunk, z_CW[rows], slope_BW, hard, (rows, columns))
            _replace(z_CW[rows], slope_BW, factor_C, rows)
        gradients.add(chunk.head(columns), chunk.hidden_CD, z_CW, row=chunk.rows.start, column=columns.start)
    return Scores(sides.value_C, hard.value_C(), None)


@dataclass(frozen=True, slots=True)
class _Sides:
    """What a row's gradient is made of: `q_factor_C` times q everywhere, and `slope_CK` on the candidates, which stands
    in its place where there is a tail and is added to it where there is none."""

    value_C: Tensor
    slope_CK: Tensor
    q_factor_C: Tensor


def _against_candidates(chunk: _Chunk, teacher: Candidates, z_CK: Tensor, running: _RunningLse) -> _Sides:
    """`running` holds the tail, or everything where the teacher has none; afterwards it holds everything."""
    tail_C = running.value_C(teacher.p_BK.dtype)
    if not teacher.tail:
        value_C = candidate_gap(z_CK - tail_C.unsqueeze(-1), teacher)
        return _Sides(value_C.to(z_CK.dtype), -teacher.p_BK.to(z_CK.dtype), teacher.p_BK.sum(-1).to(z_CK.dtype))
    running.add(slice(0, chunk.count), z_CK)
    lse_C = running.value_C(teacher.p_BK.dtype)
    tail_q_C1 = (tail_C - lse_C).exp().unsqueeze(-1)
    found = against_buckets(z_CK - lse_C.unsqueeze(-1), tail_q_C1, teacher, chunk.problem.loss.divergence)
    return _Sides(found.value_B.to(z_CK.dtype), found.slope_BK.to(z_CK.dtype), found.tail_factor_B.to(z_CK.dtype))


def _settled(chunk: _Chunk, z_BW: Tensor, slope_BW: Tensor, hard: _Hard, here: tuple[slice, slice]) -> Tensor:
    """The divergence's slope becomes the whole loss's, in place. `here` is rows and columns."""
    cap_slope_BW = chunk.problem.head.softcap_slope(z_BW)
    if chunk.problem.loss.scale != 1:
        slope_BW.mul_(chunk.problem.loss.scale)
    hard.push(*here, z_BW, slope_BW)
    return slope_BW if cap_slope_BW is None else slope_BW.mul_(cap_slope_BW)


def _replace(z_BW: Tensor, slope_BW: Tensor, factor_C: Tensor | None, rows: slice) -> None:
    """The slope, weighted, takes the place of the logits."""
    if factor_C is None:
        z_BW.copy_(slope_BW)
    else:
        torch.mul(slope_BW, factor_C[rows].unsqueeze(-1), out=z_BW)


def _inside(ids_BK: Tensor, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Of the ids that fall into `columns`: row, slot, and place within the tile."""
    row_J, slot_J = ((ids_BK >= columns.start) & (ids_BK < columns.stop)).nonzero(as_tuple=True)
    return row_J, slot_J, ids_BK[row_J, slot_J] - columns.start
