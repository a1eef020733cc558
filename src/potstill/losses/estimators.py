"""KL(q || p) from sampled tokens alone: policy-gradient distillation, where the student q wrote the tokens.

All take ln q and ln p of the *sampled* tokens, natural logarithms. Nothing is reduced over sequences.

Dimension key: N sampled tokens, S sequences, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.losses.linear import linear_divergence
from potstill.signals import Hidden, Sampled


def sampled_logp(signal: Hidden, token_N: Tensor) -> Tensor:
    """ln p of the sampled tokens, shape (N,), without gradient and without N x V logits."""
    once_N1 = token_N.unsqueeze(-1)
    with torch.no_grad():
        return -linear_divergence(
            signal.hidden_ND,
            signal.head_VD,
            teacher=Sampled(once_N1, torch.ones_like(once_N1)),
            student_bias_V=signal.bias_V,
            logit_scale=signal.logit_scale,
            softcap=signal.softcap,
        )


def reward_to_go(reward_N: Tensor, *, sequence_N: Tensor, discount: float = 1.0) -> Tensor:
    """Each token's own reward and all later ones of its sequence, shape (N,), every step further off times `discount`.
    At 1 it is the same gradient on average as the whole sum for every token (the sequence-level objective, unbiased for
    KL between distributions over answers), with less noise, since a token cannot change what came before it; at 0 the
    token-level objective (Gu et al. 2024, MiniLLM; Lu et al. 2025, "On-policy distillation"). Tokens of a sequence
    stand together, in order."""
    rewards, owners = reward_N.tolist(), sequence_N.tolist()
    for n in reversed(range(len(rewards) - 1)):
        if owners[n] == owners[n + 1]:
            rewards[n] += discount * rewards[n + 1]
    return torch.tensor(rewards, dtype=reward_N.dtype, device=reward_N.device)


def leave_one_out(return_S: Tensor, *, group_S: Tensor, groups: int) -> Tensor:
    """Each return less the mean of the others of its group (0 where there is none), shape (S,). A baseline that does
    not know the answer itself leaves the gradient as it is on average (RLOO: Kool et al. 2019, Ahmadian et al. 2024).
    """
    others_S = sequence_sums(torch.ones_like(return_S), sequence_N=group_S, sequences=groups)[group_S] - 1
    rest_S = sequence_sums(return_S, sequence_N=group_S, sequences=groups)[group_S] - return_S
    return return_S - rest_S / others_S.clamp(min=1)


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
