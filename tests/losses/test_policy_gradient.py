"""Policy gradients on answers of different length, enumerated to the last one; which modes a divergence goes for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potstill.losses import divergence
from potstill.losses.estimators import (
    leave_one_out,
    policy_gradient,
    reward_to_go,
    sampled_logp,
    sequence_sums,
)
from potstill.signals import Hidden

seeds = st.integers(0, 2**31)
END, WORDS, MOST = 0, 3, 3


def enumerated() -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], int]]:
    """All answers over three words of which one ends them, at most three long; and what can stand before a word."""
    states: dict[tuple[int, ...], int] = {}
    answers: list[tuple[int, ...]] = []
    open_ones: list[tuple[int, ...]] = [()]
    while open_ones:
        said = open_ones.pop()
        states[said] = len(states)
        for word in range(WORDS):
            whole = word == END or len(said) + 1 == MOST
            (answers if whole else open_ones).append((*said, word))
    return answers, states


ANSWERS, STATES = enumerated()
OWNER_N = torch.tensor([s for s, answer in enumerate(ANSWERS) for _ in answer])
STATE_N = torch.tensor([STATES[answer[:at]] for answer in ANSWERS for at in range(len(answer))])
WORD_N = torch.tensor([word for answer in ANSWERS for word in answer])


def policy(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of every state, and ln q of every token of every answer; float64."""
    logits = torch.randn(len(STATES), WORDS, generator=torch.Generator().manual_seed(seed)).double().requires_grad_()
    return logits, logits.log_softmax(-1)[STATE_N, WORD_N]


def whole(token_N: Tensor) -> Tensor:
    return sequence_sums(token_N, sequence_N=OWNER_N, sequences=len(ANSWERS))


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def exact_gradient(logits: Tensor, student_N: Tensor, teacher_N: Tensor) -> Tensor:
    """Of KL between the distributions over answers."""
    student_S, teacher_S = whole(student_N), whole(teacher_N)
    return gradient((student_S.exp() * (student_S - teacher_S)).sum(), logits)


def test_the_answers_are_all_there_are() -> None:
    assert len(ANSWERS) == 15 and len(STATES) == 7 and {len(answer) for answer in ANSWERS} == {1, 2, 3}
    assert whole(policy(1)[1]).exp().sum().item() == pytest.approx(1)


@given(seed=seeds)
def test_answers_of_different_length_give_the_exact_gradient_on_average(seed: int) -> None:
    (logits, student_N), teacher_N = policy(seed), policy(seed + 1)[1].detach()
    reward_N = (teacher_N - student_N).detach()
    chance_S = whole(student_N).exp().detach()
    for gain_N in (
        sequence_sums(reward_N, sequence_N=OWNER_N, sequences=len(ANSWERS))[OWNER_N],
        reward_to_go(reward_N, sequence_N=OWNER_N),
    ):
        loss_N = policy_gradient(student_logp_N=student_N, advantage_N=gain_N)
        found = gradient((chance_S[OWNER_N] * loss_N).sum(), logits)
        torch.testing.assert_close(found, exact_gradient(logits, student_N, teacher_N))


@given(seed=seeds, alone=st.booleans())
def test_the_others_as_a_baseline_leave_the_gradient_as_it_is(seed: int, alone: bool) -> None:
    """Every pair of answers, with the probability that a prompt's two answers are these."""
    (logits, student_N), teacher_N = policy(seed), policy(seed + 1)[1].detach()
    student_S = whole(student_N)
    return_S = (whole(teacher_N) - student_S).detach()
    count = len(ANSWERS)
    first_G, second_G = torch.arange(count).repeat_interleave(count), torch.arange(count).repeat(count)
    pair_2G, group_2G = torch.cat([first_G, second_G]), torch.arange(count**2).repeat(2)
    if alone:  # nobody to compare with
        group_2G = torch.arange(2 * count**2)
    gain_2G = leave_one_out(return_S[pair_2G], group_S=group_2G, groups=len(group_2G))
    loss_2G = policy_gradient(student_logp_N=student_S[pair_2G], advantage_N=gain_2G)
    chance_G = (student_S[first_G] + student_S[second_G]).exp().detach()
    found = gradient((chance_G.repeat(2) * loss_2G).sum() / 2, logits)
    torch.testing.assert_close(found, exact_gradient(logits, student_N, teacher_N))
    if not alone:
        torch.testing.assert_close(gain_2G[: count**2], -gain_2G[count**2 :])  # of two, one is as good as the other bad


@given(seed=seeds, constant=st.floats(-5, 5))
def test_a_constant_added_to_every_return_changes_nothing_on_average(seed: int, constant: float) -> None:
    (logits, student_N), teacher_N = policy(seed), policy(seed + 1)[1].detach()
    chance_N = whole(student_N).exp().detach()[OWNER_N]
    gain_N = reward_to_go((teacher_N - student_N).detach(), sequence_N=OWNER_N)
    found = [
        gradient((chance_N * policy_gradient(student_logp_N=student_N, advantage_N=gain_N + more)).sum(), logits)
        for more in (0.0, constant)
    ]
    torch.testing.assert_close(found[0], found[1])


@given(seed=seeds)
def test_the_token_level_is_every_states_own_divergence(seed: int) -> None:
    """Answers that another policy wrote: a token's ratio makes up for the token, states are visited as they were."""
    (logits, student_N), teacher_logits = policy(seed), policy(seed + 1)[0].detach()
    sampler_N = policy(seed + 2)[1].detach()
    teacher_N = teacher_logits.log_softmax(-1)[STATE_N, WORD_N]
    gain_N = (teacher_N - student_N).detach()
    loss_N = policy_gradient(student_logp_N=student_N, advantage_N=gain_N, sampler_logp_N=sampler_N)
    chance_N = whole(sampler_N).exp()[OWNER_N]
    visits_X = sequence_sums(chance_N, sequence_N=STATE_N, sequences=len(STATES))
    nats_X = divergence(
        "reverse_kl", student_logp_NV=logits.log_softmax(-1), teacher_logp_NV=teacher_logits.log_softmax(-1)
    )
    torch.testing.assert_close(gradient((chance_N * loss_N).sum(), logits), gradient((visits_X * nats_X).sum(), logits))


@given(seed=seeds)
def test_whole_answers_of_a_stale_policy_are_reweighed_exactly(seed: int) -> None:
    (logits, student_N), teacher_N = policy(seed), policy(seed + 1)[1].detach()
    sampler_S, student_S = whole(policy(seed + 2)[1].detach()), whole(student_N)
    gain_S = (whole(teacher_N) - student_S).detach()

    def found(clip: float | None) -> Tensor:
        loss_S = policy_gradient(student_logp_N=student_S, advantage_N=gain_S, sampler_logp_N=sampler_S, clip=clip)
        return gradient((sampler_S.exp() * loss_S).sum(), logits)

    exact = exact_gradient(logits, student_N, teacher_N)
    torch.testing.assert_close(found(None), exact)
    ratio_S = (student_S.detach() - sampler_S).exp()
    cut_S = ((gain_S > 0) & (ratio_S > 1.2)) | ((gain_S < 0) & (ratio_S < 0.8))
    lost = gradient((sampler_S.exp() * -(student_S - sampler_S).exp() * gain_S * cut_S).sum(), logits)
    torch.testing.assert_close(found(0.2) + lost, exact)  # clipping drops these answers and touches no other


def test_drawn_answers_agree_with_the_exact_gradient_within_their_noise() -> None:
    (logits, student_N), teacher_N = policy(11), policy(12)[1].detach()
    exact = exact_gradient(logits, student_N, teacher_N).flatten()
    reward_N = (teacher_N - student_N).detach()
    loss_N = policy_gradient(student_logp_N=student_N, advantage_N=reward_to_go(reward_N, sequence_N=OWNER_N))
    each_SX = torch.stack([gradient(one, logits).flatten() for one in whole(loss_N)])
    draws = torch.multinomial(
        whole(student_N).exp().detach(), 40_000, replacement=True, generator=torch.Generator().manual_seed(3)
    )
    along = each_SX[draws] @ (exact / exact.norm())
    assert abs(along.mean() - exact.norm()) < 3 * along.std() / math.sqrt(len(draws))
    assert exact.norm() > 20 * along.std() / math.sqrt(len(draws))  # else the line above says nothing
    noise_X = each_SX[draws].std(0) / math.sqrt(len(draws))
    assert ((each_SX[draws].mean(0) - exact).abs() <= 4 * noise_X + 1e-12).all()


@given(seed=seeds)
def test_sampled_log_probabilities_are_those_of_the_head(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden, head, bias = (torch.randn(*shape, generator=draw) for shape in ((5, 4), (9, 4), (9,)))
    token_N = torch.randint(9, (5,), generator=draw)
    signal = Hidden(hidden, head.requires_grad_(), bias_V=bias, logit_scale=0.7, softcap=3.0)
    logits = 3 * torch.tanh((0.7 * (hidden @ head.T + bias)) / 3)
    found = sampled_logp(signal, token_N)
    torch.testing.assert_close(found, logits.log_softmax(-1)[torch.arange(5), token_N], atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


# A teacher with two modes, and students that have one: bell curves over 41 outcomes.
AT_V = torch.arange(41).double()


def bells(mean_N: Tensor, spread_N: Tensor) -> Tensor:
    """ln q, shape (N, V)."""
    return (-0.5 * ((AT_V - mean_N.unsqueeze(-1)) / spread_N.unsqueeze(-1)) ** 2).log_softmax(-1)


TWO_MODES_V = torch.logsumexp(
    bells(torch.tensor([10.0, 30.0]).double(), torch.tensor([2.0, 2.0]).double())
    + torch.tensor([0.55, 0.45]).double().log().unsqueeze(-1),
    dim=0,
)


def best_bell(name: str) -> tuple[float, float, Tensor]:
    """Mean, spread and probabilities of the student with the least divergence, out of all."""
    mean_N, spread_N = torch.cartesian_prod(
        torch.linspace(0, 40, 81, dtype=torch.float64), torch.linspace(1, 20, 77, dtype=torch.float64)
    ).T
    student = bells(mean_N, spread_N)
    nats_N = divergence(name, student_logp_NV=student, teacher_logp_NV=TWO_MODES_V.expand_as(student))  # pyright: ignore
    best = int(nats_N.argmin())
    return mean_N[best].item(), spread_N[best].item(), student[best].exp()


def test_forward_kl_covers_the_modes_and_reverse_kl_seeks_one() -> None:
    mean, spread, q_V = best_bell("forward_kl")
    assert 17 < mean < 21 and spread > 9  # the teacher's own mean and spread: 19 and 10.1
    assert q_V[5:15].sum() > 0.2 and q_V[25:35].sum() > 0.2
    mean, spread, q_V = best_bell("reverse_kl")
    assert mean == pytest.approx(10, abs=0.5) and spread == pytest.approx(2, abs=0.3)  # the heavier mode
    assert q_V[:20].sum() > 0.999


def test_the_policy_gradient_seeks_the_mode_too() -> None:
    """By its own estimates: 64 outcomes drawn from the student per step, weighed by their log-ratio."""
    place = torch.tensor([14.0, math.log(5.0)], dtype=torch.float64, requires_grad=True)
    optimizer, draw = torch.optim.Adam([place], lr=0.05), torch.Generator().manual_seed(0)
    for _ in range(600):
        logq_V = bells(place[:1], place[1:].exp())[0]
        drawn_N = torch.multinomial(logq_V.exp().detach(), 64, replacement=True, generator=draw)
        gain_N = (TWO_MODES_V[drawn_N] - logq_V[drawn_N]).detach()
        gain_N = leave_one_out(gain_N, group_S=torch.zeros(64, dtype=torch.long), groups=1)
        optimizer.zero_grad()
        policy_gradient(student_logp_N=logq_V[drawn_N], advantage_N=gain_N).mean().backward()
        optimizer.step()
    mean, spread = place[0].item(), place[1].exp().item()
    assert mean == pytest.approx(10, abs=0.5) and spread == pytest.approx(2, abs=0.4)
