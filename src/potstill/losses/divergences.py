"""Every divergence between a teacher p and a student q, each in two forms that say the same.

The *reference form* is the textbook formula on natural-log probabilities. The *terms* are what the engine needs of a
tile of the vocabulary: with d = ln p - ln q,

    value  sum of the integrand over the tile, nats
    slope  q * dL/dq, one number an outcome (a constant added to dL/dq changes nothing, since q sums to 1)
    mean   sum of the slope over the tile

because the gradient on the student's logits is then `slope - q * mean`, with the sums taken over the whole vocabulary.
The constant is best chosen so that the slope is 0 where p = q: little is then lost when the two terms nearly cancel.
Terms may overwrite `d_BV`. To add a divergence: a value, the two functions, a line in `FORMS`.

Dimension key: N rows, B rows of a tile, V outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Name = Literal["forward_kl", "reverse_kl", "jeffreys", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation"]


@dataclass(frozen=True, slots=True)
class ForwardKl:
    """KL(p || q): Hinton et al. 2015. Covers all that the teacher does."""


@dataclass(frozen=True, slots=True)
class ReverseKl:
    """KL(q || p): Gu et al. 2024 (MiniLLM). Seeks a mode of the teacher."""


@dataclass(frozen=True, slots=True)
class Jeffreys:
    """KL(p || q) + KL(q || p): Jeffreys 1946."""


@dataclass(frozen=True, slots=True)
class Jsd:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q: Agarwal et al. 2024 (GKD)."""

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(
                f"Jsd.beta is {self.beta}, but lies strictly between 0 and 1: "
                "GKD's beta 0 is 'forward_kl' and its beta 1 is 'reverse_kl'"
            )


@dataclass(frozen=True, slots=True)
class _Skew:
    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            plain = "forward_kl" if isinstance(self, SkewForwardKl) else "reverse_kl"
            raise ValueError(
                f"{type(self).__name__}.alpha is {self.alpha}, but lies strictly between 0 and 1: alpha 0 is '{plain}'"
            )


class SkewForwardKl(_Skew):
    """KL(p || alpha p + (1 - alpha) q): Ko et al. 2024 (DistiLLM)."""


class SkewReverseKl(_Skew):
    """KL(q || alpha q + (1 - alpha) p): Ko et al. 2024 (DistiLLM)."""


@dataclass(frozen=True, slots=True)
class TotalVariation:
    """Half the sum of |p - q|, between 0 and 1: Wen et al. 2023."""


Divergence = ForwardKl | ReverseKl | Jeffreys | Jsd | SkewForwardKl | SkewReverseKl | TotalVariation


@dataclass(frozen=True, slots=True)
class Tile:
    """Student probabilities, teacher probabilities and d = ln p - ln q of some rows and outcomes.

    `zeros`: some probability is exactly 0 with an infinite logarithm, so that 0 ln 0 must be made 0.
    """

    q_BV: Tensor
    p_BV: Tensor
    d_BV: Tensor
    zeros: bool = False

    def expect(self, weight_BV: Tensor) -> Tensor:
        """`weight * d`, where nothing weighs nothing. A new tensor."""
        product_BV = weight_BV * self.d_BV
        return torch.where(weight_BV == 0, 0.0, product_BV) if self.zeros else product_BV  # and NaN stays NaN

    def bounded_d(self) -> Tensor:
        """d in [-80, 80], in place: past that the smaller probability is below 1e-34 of the larger, and exp(d) stays
        finite."""
        if self.zeros:
            self.d_BV.nan_to_num_(nan=0.0)
        return self.d_BV.clamp_(-80.0, 80.0)


Terms = tuple[Tensor, Tensor, Tensor]
"""value_B, slope_BV, mean_B."""


# Reference forms


def forward_kl(*, student_logp_NV: Tensor, teacher_logp_NV: Tensor) -> Tensor:
    """KL(teacher || student), shape (N,): zero exactly where the two agree. 0 ln 0 counts as 0."""
    teacher_NV = teacher_logp_NV.exp()
    gap_NV = torch.where(teacher_NV > 0, teacher_logp_NV - student_logp_NV, 0.0)
    return (teacher_NV * gap_NV).sum(-1)


def reverse_kl(*, student_logp_NV: Tensor, teacher_logp_NV: Tensor) -> Tensor:
    return forward_kl(student_logp_NV=teacher_logp_NV, teacher_logp_NV=student_logp_NV)


def jeffreys(*, student_logp_NV: Tensor, teacher_logp_NV: Tensor) -> Tensor:
    return forward_kl(student_logp_NV=student_logp_NV, teacher_logp_NV=teacher_logp_NV) + reverse_kl(
        student_logp_NV=student_logp_NV, teacher_logp_NV=teacher_logp_NV
    )


def jsd(*, student_logp_NV: Tensor, teacher_logp_NV: Tensor, beta: float) -> Tensor:
    mixture_NV = _mix(teacher_logp_NV, student_logp_NV, beta)
    return beta * forward_kl(student_logp_NV=mixture_NV, teacher_logp_NV=teacher_logp_NV) + (1 - beta) * forward_kl(
        student_logp_NV=mixture_NV, teacher_logp_NV=student_logp_NV
    )


def skew_forward_kl(*, student_logp_NV: Tensor, teacher_logp_NV: Tensor, alpha: float) -> Tensor:
    mixture_NV = _mix(teacher_logp_NV, student_logp_NV, alpha)
    return forward_kl(student_logp_NV=mixture_NV, teacher_logp_NV=teacher_logp_NV)


def skew_reverse_kl(*, student_logp_NV: Tensor, teacher_logp_NV: Tensor, alpha: float) -> Tensor:
    mixture_NV = _mix(student_logp_NV, teacher_logp_NV, alpha)
    return forward_kl(student_logp_NV=mixture_NV, teacher_logp_NV=student_logp_NV)


def total_variation(*, student_logp_NV: Tensor, teacher_logp_NV: Tensor) -> Tensor:
    return (student_logp_NV.exp() - teacher_logp_NV.exp()).abs().sum(-1) / 2


# Terms


def forward_kl_terms(tile: Tile) -> Terms:
    slope_BV = tile.expect(tile.p_BV)
    value_B = slope_BV.sum(-1)
    slope_BV = torch.neg(tile.p_BV, out=slope_BV)
    return value_B, slope_BV, slope_BV.sum(-1)


def reverse_kl_terms(tile: Tile) -> Terms:
    slope_BV = tile.expect(tile.q_BV).neg_()
    value_B = slope_BV.sum(-1)
    return value_B, slope_BV, value_B


def jeffreys_terms(tile: Tile) -> Terms:
    forward_B = tile.expect(tile.p_BV).sum(-1)
    slope_BV = tile.expect(tile.q_BV)
    value_B = forward_B - slope_BV.sum(-1)
    slope_BV.add_(tile.p_BV).neg_()
    return value_B, slope_BV, slope_BV.sum(-1)


def jsd_terms(tile: Tile, *, beta: float) -> Terms:
    """u = ln q/m = -ln(1 + beta (e^d - 1)), and ln p/m = u + d."""
    d_BV = tile.bounded_d()
    u_BV = torch.expm1(d_BV).mul_(beta).log1p_().neg_()
    teacher_B = d_BV.add_(u_BV).mul_(tile.p_BV).sum(-1)
    slope_BV = u_BV.mul_(tile.q_BV)
    student_B = slope_BV.sum(-1)
    return beta * teacher_B + (1 - beta) * student_B, slope_BV.mul_(1 - beta), student_B * (1 - beta)


def skew_forward_kl_terms(tile: Tile, *, alpha: float) -> Terms:
    """ln p/m = -ln(1 + x) and p/m = 1 / (1 + x) with x = (1 - alpha)(e^-d - 1)."""
    x_BV = torch.expm1(tile.bounded_d().neg_()).mul_(1 - alpha)
    value_B = torch.log1p(x_BV, out=tile.d_BV).mul_(tile.p_BV).sum(-1).neg_()
    slope_BV = x_BV.add_(1.0).reciprocal_().mul_(tile.q_BV).mul_(alpha - 1)
    return value_B, slope_BV, slope_BV.sum(-1)


def skew_reverse_kl_terms(tile: Tile, *, alpha: float) -> Terms:
    """ln q/m = -ln(1 + x) and q/m = 1 / (1 + x) with x = (1 - alpha)(e^d - 1)."""
    x_BV = torch.expm1(tile.bounded_d()).mul_(1 - alpha)
    log_BV = torch.log1p(x_BV, out=tile.d_BV).mul_(tile.q_BV)
    value_B = log_BV.sum(-1).neg_()
    slope_BV = x_BV.div_(x_BV + 1.0).mul_(tile.q_BV).mul_(alpha).sub_(log_BV)
    return value_B, slope_BV, slope_BV.sum(-1)


def total_variation_terms(tile: Tile) -> Terms:
    """Where p = q the gradient is taken as 0."""
    gap_BV = torch.sub(tile.q_BV, tile.p_BV, out=tile.d_BV)
    value_B = torch.abs(gap_BV).sum(-1).div_(2)
    slope_BV = gap_BV.sign_().mul_(tile.q_BV).div_(2)
    return value_B, slope_BV, slope_BV.sum(-1)


@dataclass(frozen=True, slots=True)
class Form:
    """How one divergence is named, computed on log-probabilities, and computed on a tile."""

    name: Name
    value: type[Divergence]
    reference: Callable[..., Tensor]
    terms: Callable[..., Terms]


FORMS: dict[Name, Form] = {
    form.name: form
    for form in (
        Form("forward_kl", ForwardKl, forward_kl, forward_kl_terms),
        Form("reverse_kl", ReverseKl, reverse_kl, reverse_kl_terms),
        Form("jeffreys", Jeffreys, jeffreys, jeffreys_terms),
        Form("jsd", Jsd, jsd, jsd_terms),
        Form("skew_forward_kl", SkewForwardKl, skew_forward_kl, skew_forward_kl_terms),
        Form("skew_reverse_kl", SkewReverseKl, skew_reverse_kl, skew_reverse_kl_terms),
        Form("total_variation", TotalVariation, total_variation, total_variation_terms),
    )
}


def divergence(name: Name | Divergence, *, student_logp_NV: Tensor, teacher_logp_NV: Tensor) -> Tensor:
    """The reference form, nats of shape (N,). A name means its defaults: `"jsd"` is `Jsd(beta=0.5)`."""
    value = resolve(name)
    reference = form_of(value).reference
    return reference(student_logp_NV=student_logp_NV, teacher_logp_NV=teacher_logp_NV, **_fields(value))


def terms_of(value: Divergence, tile: Tile) -> Terms:
    return form_of(value).terms(tile, **_fields(value))


def resolve(name: Name | Divergence) -> Divergence:
    """Raises ValueError on an unknown name."""
    if not isinstance(name, str):
        return name
    if name not in FORMS:
        raise ValueError(f"there is no divergence '{name}'; there are {', '.join(FORMS)}")
    return FORMS[name].value()


def form_of(value: Divergence) -> Form:
    return next(form for form in FORMS.values() if form.value is type(value))


def _fields(value: Divergence) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _mix(one_logp_NV: Tensor, other_logp_NV: Tensor, share: float) -> Tensor:
    """ln(share * one + (1 - share) * other)."""
    logit = torch.logit(torch.tensor(share, dtype=torch.float64)).item()
    log_rest = torch.log1p(torch.tensor(-share, dtype=torch.float64)).item()
    return torch.logaddexp(one_logp_NV + logit, other_logp_NV) + log_rest
