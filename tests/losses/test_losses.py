"""Laws, parity with an independent reference, golden values; gradients against float64 autograd."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.losses import (
    Jsd,
    SkewForwardKl,
    SkewReverseKl,
    choice_kd,
    choice_logp,
    divergence,
    forward_kl,
)

seeds = st.integers(0, 2**31)


def log_probs(seed: int, n: int = 5, v: int = 7, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(3 * torch.randn(n, v, generator=generator, dtype=dtype), dim=-1)


def test_forward_kl_of_a_coin_is_the_hand_computed_value() -> None:
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    nats = forward_kl(student_logp_NV=student, teacher_logp_NV=teacher)
    assert nats.item() == pytest.approx(0.130812, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "nats"),
    [  # a teacher of 3/4 : 1/4 and a fair coin, by hand
        ("forward_kl", 0.130812),
        ("reverse_kl", 0.143841),
        ("jeffreys", 0.274653),
        ("jsd", 0.033822),
        ("total_variation", 0.25),
        (Jsd(beta=0.25), 0.024870),
        (SkewForwardKl(alpha=0.5), 0.035375),
        (SkewReverseKl(alpha=0.5), 0.032269),
    ],
)
def test_golden_values_of_a_coin(name: Any, nats: float) -> None:
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    found = divergence(name, student_logp_NV=student, teacher_logp_NV=teacher)
    assert found.item() == pytest.approx(nats, abs=2e-6)


@given(seed=seeds)
def test_divergences_hang_together(seed: int) -> None:
    p, q = log_probs(seed, dtype=torch.float64), log_probs(seed + 1, dtype=torch.float64)

    def of(name: Any, *, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return divergence(name, student_logp_NV=student, teacher_logp_NV=teacher)

    there, back = (of("forward_kl", student=a, teacher=b) for a, b in ((q, p), (p, q)))
    torch.testing.assert_close(of("reverse_kl", student=q, teacher=p), back)
    torch.testing.assert_close(of("jeffreys", student=q, teacher=p), there + back)
    torch.testing.assert_close(of("jsd", student=q, teacher=p), of("jsd", student=p, teacher=q))
    torch.testing.assert_close(of(Jsd(0.3), student=q, teacher=p), of(Jsd(0.7), student=p, teacher=q))
    # both skews of one half are the two halves of the Jensen-Shannon divergence
    halves = of(SkewForwardKl(0.5), student=q, teacher=p) + of(SkewReverseKl(0.5), student=q, teacher=p)
    torch.testing.assert_close(halves / 2, of("jsd", student=q, teacher=p))
    torch.testing.assert_close(of(SkewForwardKl(1e-15), student=q, teacher=p), there, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of(SkewReverseKl(1e-15), student=q, teacher=p), back, rtol=1e-5, atol=1e-6)


@given(seed=seeds)
def test_forward_kl_is_not_negative_and_zero_on_agreement(seed: int) -> None:
    p, q = log_probs(seed), log_probs(seed + 1)
    assert (forward_kl(student_logp_NV=q, teacher_logp_NV=p) >= 0).all()
    torch.testing.assert_close(forward_kl(student_logp_NV=p, teacher_logp_NV=p), torch.zeros(5))


@given(seed=seeds)
def test_forward_kl_equals_the_torch_reference(seed: int) -> None:
    p, q = log_probs(seed), log_probs(seed + 1)
    reference = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(forward_kl(student_logp_NV=q, teacher_logp_NV=p), reference)


def test_a_teacher_without_mass_on_an_outcome_gives_no_nan_in_value_or_gradient() -> None:
    teacher = torch.tensor([[0.0, -math.inf]])
    logits = torch.tensor([[0.3, -2.0]], requires_grad=True)
    nats = forward_kl(student_logp_NV=torch.log_softmax(logits, -1), teacher_logp_NV=teacher)
    nats.sum().backward()
    assert torch.isfinite(nats).all()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@given(seed=seeds, temperature=st.floats(0.25, 8))
def test_choice_kd_gradient_matches_float64_autograd(seed: int, temperature: float) -> None:
    teacher = log_probs(seed, dtype=torch.float64)
    logits = log_probs(seed + 1, dtype=torch.float64)
    student32 = logits.float().requires_grad_()
    choice_kd(student_logp_NC=student32, teacher_logp_NC=teacher.float(), temperature=temperature).sum().backward()
    student64 = logits.clone().requires_grad_()
    p = torch.softmax(teacher / temperature, -1)
    q = torch.softmax(student64 / temperature, -1)
    (temperature**2 * (p * (p / q).log()).sum()).backward()
    assert student32.grad is not None and student64.grad is not None
    torch.testing.assert_close(student32.grad.double(), student64.grad, atol=2e-5, rtol=1e-4)


@given(seed=seeds)
def test_t_squared_keeps_the_gradient_from_vanishing(seed: int) -> None:
    """At high temperature T² KL tends to half the squared distance of the centred logits (Hinton et al. 2015)."""
    teacher, student = log_probs(seed, v=4), log_probs(seed + 1, v=4)
    gap = (teacher - student) - (teacher - student).mean(-1, keepdim=True)
    nats = choice_kd(student_logp_NC=student, teacher_logp_NC=teacher, temperature=100.0)
    torch.testing.assert_close(nats, (gap**2).sum(-1) / (2 * 4), rtol=0.15, atol=5e-2)


@given(seed=seeds)
def test_changing_the_teacher_changes_the_gradient(seed: int) -> None:
    def gradient(teacher: torch.Tensor) -> torch.Tensor:
        student = log_probs(seed).requires_grad_()
        choice_kd(student_logp_NC=student, teacher_logp_NC=teacher, temperature=2.0).sum().backward()
        assert student.grad is not None
        return student.grad

    assert not torch.allclose(gradient(log_probs(seed + 1)), gradient(log_probs(seed + 2)))


def test_choice_logp_sums_the_tokens_of_each_choice() -> None:
    logp_RV = log_probs(0, n=3, v=5)
    # prompt 0: choice 0 is token 1 at row 0; choice 1 is token 2 at row 0, then token 4 at row 1
    # prompt 1: choice 0 is token 3 at row 2; choice 1 is token 0 at row 2
    found = choice_logp(
        logp_RV,
        row_M=torch.tensor([0, 0, 1, 2, 2]),
        token_M=torch.tensor([1, 2, 4, 3, 0]),
        choice_M=torch.tensor([0, 1, 1, 2, 3]),
        n_choices=2,
    )
    expected = torch.stack(
        [
            torch.stack([logp_RV[0, 1], logp_RV[0, 2] + logp_RV[1, 4]]),
            torch.stack([logp_RV[2, 3], logp_RV[2, 0]]),
        ]
    )
    torch.testing.assert_close(found, expected)
