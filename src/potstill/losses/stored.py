"""The default engine: the logits of a chunk of rows are kept and become their gradient in place, so that every matrix
product is done once and nothing grows with the number of rows.

Dimension key: N rows, C rows of a chunk, B rows of a block, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.losses.observed import observe_dense, observe_sparse
from potstill.losses.problem import Gradients, Problem, Scores
from potstill.losses.tiles import Softmax, blocks, dense, softmax, sparse


def stored(problem: Problem, hidden_ND: Tensor, gradients: Gradients, factor_N: Tensor | None) -> Scores:
    """Scores of every row; the gradient of the sum of `factor_N` (None: 1) times the row's loss is added up."""
    count, size = len(hidden_ND), problem.chunk[0]
    columns = slice(0, problem.vocabulary)
    kept_CV = hidden_ND.new_empty((min(size, count), problem.vocabulary), dtype=torch.float32)
    teacher_CV = torch.empty_like(kept_CV) if problem.dense else None
    scores = Scores.room(count, hidden_ND.device)
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        hidden_CD = hidden_ND[rows]
        z_CV = problem.head.logits(hidden_CD, out_CV=kept_CV[: len(hidden_CD)])
        if teacher_CV is not None:
            problem.teacher_logits(rows, columns, out_CV=teacher_CV[: len(hidden_CD)])
        for block in blocks(z_CV):
            here = slice(start + block.start, start + block.stop)
            scores.put(here, _score(problem, here, z_CV[block], None if teacher_CV is None else teacher_CV[block]))
            if factor_N is not None:
                z_CV[block].mul_(factor_N[here].unsqueeze(-1))
        gradients.add(problem.head, hidden_CD, z_CV, row=start, column=0)
    return scores


def _score(problem: Problem, rows: slice, z_BV: Tensor, teacher_BV: Tensor | None) -> Scores:
    """The numbers of one block, whose logits become the gradient of the row's loss."""
    student = softmax(z_BV)
    cap_slope_BV = problem.head.softcap_slope(z_BV)
    hard = _hard_targets(problem, rows, z_BV, student)
    observed = None
    if teacher_BV is not None:
        teacher = softmax(teacher_BV)
        if problem.observe:
            observed = observe_dense(z_BV, student, teacher_BV, teacher, None if hard is None else hard.target_B1)
        value_B = dense(z_BV, student, teacher_BV, teacher, problem.loss.divergence)
    else:
        candidates = problem.candidates(rows)
        if problem.observe:
            observed = observe_sparse(z_BV, student, candidates)
        value_B = sparse(z_BV, student, candidates, problem.loss.divergence)
    if problem.loss.scale != 1:
        z_BV.mul_(problem.loss.scale)
    if hard is not None:
        pull = problem.loss.cross_entropy_weight * problem.loss.temperature
        z_BV.add_(hard.p_BV, alpha=pull)
        z_BV.scatter_add_(-1, hard.target_B1, torch.full_like(hard.value_B, -pull).unsqueeze(-1))
    if cap_slope_BV is not None:
        z_BV.mul_(cap_slope_BV)
    return Scores(value_B, torch.zeros_like(value_B) if hard is None else hard.value_B, observed)


@dataclass(frozen=True, slots=True)
class _HardTargets:
    """Cross-entropy with one right token per row, always at temperature 1."""

    target_B1: Tensor
    p_BV: Tensor
    value_B: Tensor


def _hard_targets(problem: Problem, rows: slice, z_BV: Tensor, student: Softmax) -> _HardTargets | None:
    if problem.loss.targets_N is None:
        return None
    target_B1 = problem.loss.targets_N[rows].unsqueeze(-1)
    if problem.loss.temperature == 1:
        found, z_B = student, z_BV.gather(-1, target_B1).squeeze(-1)
    else:
        plain_BV = z_BV * problem.loss.temperature
        found, z_B = softmax(plain_BV), plain_BV.gather(-1, target_B1).squeeze(-1)
    return _HardTargets(target_B1, found.p_BV, found.lse_B - z_B)
