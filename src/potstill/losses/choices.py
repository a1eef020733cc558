"""Soft targets over a handful of allowed answers.

Dimension key: N prompts, C choices, R rows of logits, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.losses.divergences import Divergence, Name
from potstill.losses.divergences import divergence as nats_of


def choice_logp(logp_RV: Tensor, *, row_M: Tensor, token_M: Tensor, choice_M: Tensor, n_choices: int) -> Tensor:
    """ln p(answer | prompt) of every choice, shape (N, C): the sum of its tokens' log-probabilities.

    Each of the M answer tokens says which row of `logp_RV` predicts it, its id, and the flat index n * C + c of the
    prompt and choice it belongs to.
    """
    n = int(choice_M.max()) // n_choices + 1
    token_logp_M = logp_RV[row_M, token_M]
    flat = torch.zeros(n * n_choices, dtype=logp_RV.dtype, device=logp_RV.device)
    return flat.index_add(0, choice_M, token_logp_M).view(n, n_choices)


def choice_kd(
    *,
    student_logp_NC: Tensor,
    teacher_logp_NC: Tensor,
    temperature: float,
    divergence: Name | Divergence = "forward_kl",
) -> Tensor:
    """T² times the divergence of p_T and q_T over the choices, shape (N,), with p_T proportional to p^(1/T).

    The factor T² keeps the size of the gradient when the temperature changes (Hinton et al. 2015, section 2).
    """
    student = torch.log_softmax(student_logp_NC.float() / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_logp_NC.float() / temperature, dim=-1)
    return temperature**2 * nats_of(divergence, student_logp_NV=student, teacher_logp_NV=teacher)
