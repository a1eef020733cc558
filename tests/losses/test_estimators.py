"""Policy-gradient terms against the exact gradient of KL(q || p), by enumeration."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potstill.losses.estimators import (
    leave_one_out,
    policy_gradient,
    reward_to_go,
    sequence_sums,
)

seeds = st.integers(0, 2**31)


def pair(seed: int, v: int = 6) -> tuple[Tensor, Tensor]:
    """Student logits that require grad, teacher log-probabilities; float64."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(v, generator=g).double().requires_grad_(), torch.log_softmax(
        torch.randn(v, generator=g).double(), -1
    )


def expected_gradient(logits: Tensor, loss_V: Tensor) -> Tensor:
    """The gradient of a sampled loss, averaged exactly: outcomes weigh q without gradient through the weight."""
    q_V = torch.softmax(logits, -1).detach()
    (gradient,) = torch.autograd.grad((q_V * loss_V).sum(), logits, retain_graph=True)
    return gradient


def exact_gradient(logits: Tensor, logp_V: Tensor) -> Tensor:
    logq_V = torch.log_softmax(logits, -1)
    (gradient,) = torch.autograd.grad((logq_V.exp() * (logq_V - logp_V)).sum(), logits)
    return gradient


@given(seed=seeds)
def test_the_policy_gradient_is_the_exact_one_on_average(seed: int) -> None:
    logits, logp_V = pair(seed)
    logq_V = torch.log_softmax(logits, -1)
    gain_V = (logp_V - logq_V).detach()
    loss_V = policy_gradient(student_logp_N=logq_V, advantage_N=gain_V)
    torch.testing.assert_close(expected_gradient(logits, loss_V), exact_gradient(logits, logp_V))


@given(seed=seeds)
def test_samples_of_another_policy_are_reweighed(seed: int) -> None:
    logits, logp_V = pair(seed)
    sampler_V = pair(seed + 1)[1]
    logq_V = torch.log_softmax(logits, -1)
    gain_V = (logp_V - logq_V).detach()
    loss_V = policy_gradient(student_logp_N=logq_V, advantage_N=gain_V, sampler_logp_N=sampler_V)
    (found,) = torch.autograd.grad((sampler_V.exp() * loss_V).sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, exact_gradient(logits, logp_V))


def two_step(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """All answers of two tokens over three words: the student's two token log-probabilities, the teacher's, logits."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 3, generator=g).double().requires_grad_()  # first token, then one row for each first token
    teacher = torch.log_softmax(torch.randn(4, 3, generator=g).double(), -1)
    logq = torch.log_softmax(logits, -1)
    answers = list(itertools.product(range(3), range(3)))
    student_S2 = torch.stack([torch.stack([logq[0, a], logq[1 + a, b]]) for a, b in answers])
    teacher_S2 = torch.stack([torch.stack([teacher[0, a], teacher[1 + a, b]]) for a, b in answers])
    return student_S2, teacher_S2, logits


@given(seed=seeds)
def test_the_sequence_level_gradient_is_that_of_the_kl_between_answers(seed: int) -> None:
    student_S2, teacher_S2, logits = two_step(seed)
    answer_S = student_S2.sum(-1)
    exact = (answer_S.exp() * (answer_S - teacher_S2.sum(-1))).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    sequence_N = torch.arange(9).repeat_interleave(2)
    student_N, teacher_N = student_S2.flatten(), teacher_S2.flatten()
    weight_N = answer_S.exp().detach()[sequence_N]
    rewards_N = (teacher_N - student_N).detach()
    whole_N = sequence_sums(rewards_N, sequence_N=sequence_N, sequences=9)[sequence_N]
    later_N = reward_to_go(rewards_N, sequence_N=sequence_N)
    for gain_N in (whole_N, later_N):
        loss_N = policy_gradient(student_logp_N=student_N, advantage_N=gain_N)
        (found,) = torch.autograd.grad((weight_N * loss_N).sum(), logits, retain_graph=True)
        torch.testing.assert_close(found, wanted)


def test_sums_and_rewards_to_go_of_a_hand_made_batch() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0])
    owner = torch.tensor([0, 0, 0, 1, 1])
    assert sequence_sums(rewards, sequence_N=owner, sequences=2).tolist() == [6.0, 30.0]
    assert reward_to_go(rewards, sequence_N=owner).tolist() == [6.0, 5.0, 3.0, 30.0, 20.0]
    assert reward_to_go(rewards, sequence_N=owner, discount=0.5).tolist() == [2.75, 3.5, 3.0, 20.0, 20.0]
    assert reward_to_go(rewards, sequence_N=owner, discount=0.0).tolist() == rewards.tolist()
    group = torch.tensor([0, 0, 0, 1, 2])
    assert leave_one_out(rewards, group_S=group, groups=3).tolist() == [-1.5, 0.0, 1.5, 10.0, 20.0]


def test_clipping_stops_the_gain_but_not_the_way_back() -> None:
    logq = torch.tensor([0.5, 0.5, -0.5, -0.5]).requires_grad_()
    gain = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = policy_gradient(student_logp_N=logq, advantage_N=gain, sampler_logp_N=torch.zeros(4), clip=0.2)
    loss.sum().backward()
    assert logq.grad is not None
    assert [g != 0 for g in logq.grad.tolist()] == [False, True, True, False]
