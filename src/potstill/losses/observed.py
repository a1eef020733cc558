"""By-products of a pass that are worth logging. They cost no matrix product.

Dimension key: N rows, B rows of a block, V vocabulary, K stored candidates, k candidates and the tail.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from potstill.losses.tiles import Candidates, Softmax, buckets, mass_outside


@dataclass(frozen=True, slots=True)
class Observed:
    """Row by row, shape (N,); None where the signal does not say.

    Entropies (nats) are at the loss's temperature; a top-k's tail counts as one outcome. `agreement_N` is 1 where
    student and teacher have the same most probable token. Of targets: the teacher's ln p, and how many tokens it finds
    more probable.
    """

    student_entropy_N: Tensor
    teacher_entropy_N: Tensor | None = None
    agreement_N: Tensor | None = None
    target_logp_N: Tensor | None = None
    target_rank_N: Tensor | None = None

    def room(self, count: int) -> Observed:
        """For `count` rows, with the columns that there are here."""
        columns = {name: None if column is None else column.new_zeros(count) for name, column in self._columns()}
        return Observed(**columns)  # pyright: ignore[reportArgumentType]

    def put(self, rows: slice, part: Observed) -> None:
        for (_, column), (_, some) in zip(self._columns(), part._columns(), strict=True):
            if column is not None and some is not None:
                column[rows] = some

    def _columns(self) -> list[tuple[str, Tensor | None]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def observe_dense(
    z_BV: Tensor, student: Softmax, teacher_z_BV: Tensor, teacher: Softmax, target_B1: Tensor | None
) -> Observed:
    agreement_B = z_BV.argmax(-1) == teacher_z_BV.argmax(-1)
    target_z_B1 = None if target_B1 is None else teacher_z_BV.gather(-1, target_B1)
    return Observed(
        _entropy(z_BV, student),
        _entropy(teacher_z_BV, teacher),
        agreement_B.float(),
        None if target_z_B1 is None else target_z_B1.squeeze(-1) - teacher.lse_B,
        None if target_z_B1 is None else (teacher_z_BV > target_z_B1).sum(-1).float(),
    )


def observe_sparse(z_BV: Tensor, student: Softmax, teacher: Candidates) -> Observed:
    entropy_B = _entropy(z_BV, student)
    if teacher.logp_BK is None:
        return Observed(entropy_B)
    q_BK = student.p_BV.gather(-1, teacher.ids_BK).to(teacher.p_BK.dtype)
    tile = buckets(q_BK.log(), mass_outside(student.p_BV, teacher.ids_BK).to(q_BK.dtype), teacher)
    best_B = teacher.ids_BK.gather(-1, teacher.logp_BK.argmax(-1, keepdim=True)).squeeze(-1)
    return Observed(
        entropy_B,
        torch.special.entr(tile.p_BV).sum(-1).float(),
        (z_BV.argmax(-1) == best_B).float(),
    )


def _entropy(z_BV: Tensor, made: Softmax) -> Tensor:
    """-sum p ln p = lse - sum p z; a logit of -inf weighs nothing."""
    product_BV = made.p_BV * z_BV
    mean_B = product_BV.sum(-1)
    if z_BV.device.type != "cpu" or not mean_B.isfinite().all():
        mean_B = torch.where(made.p_BV == 0, 0.0, product_BV).sum(-1)
    return made.lse_B - mean_B
