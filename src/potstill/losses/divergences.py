"""Divergences between a teacher's and a student's distribution, one value a row.

Dimension key: N rows, V outcomes. Arguments are fp32 natural-log probabilities, results nats of shape (N,).
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward_kl(*, student_logp_NV: Tensor, teacher_logp_NV: Tensor) -> Tensor:
    """KL(teacher || student), shape (N,): zero exactly where the two agree. 0 ln 0 counts as 0."""
    teacher_NV = teacher_logp_NV.exp()
    gap_NV = torch.where(teacher_NV > 0, teacher_logp_NV - student_logp_NV, 0.0)
    return (teacher_NV * gap_NV).sum(-1)
