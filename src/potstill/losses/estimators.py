"""KL(q || p) from sampled tokens alone: policy-gradient distillation, where the student q wrote the tokens.

All take ln q and ln p of the *sampled* tokens, natural logarithms. Nothing is reduced over sequences.

Dimension key: N sampled tokens, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantage(*, student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """ln p - ln q of each sampled token, shape (N,), without gradient: the reward of one step towards the teacher.

    With it, `policy_gradient` is on average the gradient of -KL(q || p) for the next token alone (the token-level
    objective: Gu et al. 2024, MiniLLM; Lu et al. 2025, "On-policy distillation").
    """
    return (teacher_logp_N - student_logp_N).detach()


def sequence_advantage(*, student_logp_N: Tensor, teacher_logp_N: Tensor, sequence_N: Tensor, sequences: int) -> Tensor:
    """The sum of ln p - ln q over a token's whole answer, shape (N,): the sequence-level objective, unbiased for the
    gradient of KL between distributions over answers. `sequence_N` says whose token it is, 0 <= sequence < sequences.
    """
    reward_N = advantage(student_logp_N=student_logp_N, teacher_logp_N=teacher_logp_N)
    return sequence_sums(reward_N, sequence_N=sequence_N, sequences=sequences)[sequence_N]


def reward_to_go(reward_N: Tensor, *, sequence_N: Tensor, sequences: int) -> Tensor:
    """Each token's own reward and all later ones of its sequence, shape (N,): the same gradient on average as
    `sequence_advantage`, with less noise, since a token cannot change what came before it. Tokens of a sequence stand
    together, in order."""
    before_N = reward_N.cumsum(0) - reward_N
    totals_S = sequence_sums(reward_N, sequence_N=sequence_N, sequences=sequences)
    ends_S = totals_S.cumsum(0)
    return ends_S[sequence_N] - before_N


def sequence_sums(values_N: Tensor, *, sequence_N: Tensor, sequences: int) -> Tensor:
    """Shape (S,)."""
    return torch.zeros(sequences, dtype=values_N.dtype, device=values_N.device).index_add(0, sequence_N, values_N)


def policy_gradient(
    *, student_logp_N: Tensor, advantage_N: Tensor, sampler_logp_N: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """-ratio * advantage, shape (N,), to be minimised; ratio = q / q_sampler (1 where the student itself sampled).

    `clip` c holds the ratio in [1 - c, 1 + c] where that lowers what could be gained (Schulman et al. 2017, PPO).
    """
    behaviour_N = student_logp_N.detach() if sampler_logp_N is None else sampler_logp_N
    ratio_N = (student_logp_N - behaviour_N).exp()
    loss_N = -ratio_N * advantage_N
    if clip is None:
        return loss_N
    return torch.maximum(loss_N, -ratio_N.clamp(1 - clip, 1 + clip) * advantage_N)


def k1(*, student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """ln q - ln p: unbiased for KL(q || p), may be negative (Schulman 2020, "Approximating KL divergence")."""
    return student_logp_N - teacher_logp_N


def k2(*, student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """(ln q - ln p)² / 2: biased, never negative; its plain gradient is on average the exact one of KL(q || p)."""
    return (student_logp_N - teacher_logp_N).square() / 2


def k3(*, student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """p/q - 1 - ln p/q: unbiased and never negative, at less variance than `k1` where p is near q."""
    gap_N = teacher_logp_N - student_logp_N
    return gap_N.expm1() - gap_N
