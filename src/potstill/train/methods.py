"""What each method minimises on a batch. A method is a small frozen value of the recipe; dispatch is this one `match`.

Terms are sums over their own rows; the loop divides each by its own count, taken over the whole step.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from potstill.losses import choice_kd, choice_logp
from potstill.recipe import LogitKd, Sft
from potstill.train.batch import Batch


def terms(method: Sft | LogitKd, logits_RV: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch in nats (a scalar to call backward on) and what is worth logging.

    Cross-entropy is a mean over the answers' tokens with the full vocabulary, so that the model learns to write an
    allowed answer and to stop; the soft targets are a mean over prompts on the choices alone.
    """
    logp_RV = torch.log_softmax(logits_RV, dim=-1)
    targets = len(batch.target_R)
    ce = -logp_RV[torch.arange(targets), batch.target_R].mean()
    match method:
        case Sft():
            return ce, {"ce": ce.item()}
        case LogitKd(temperature=temperature, alpha=alpha):
            student_NC = choice_logp(
                logp_RV,
                row_M=batch.choice_row_M,
                token_M=batch.choice_token_M,
                choice_M=batch.choice_at_M,
                n_choices=batch.teacher_logp_NC.shape[1],
            )
            kd = choice_kd(
                student_logp_NC=student_NC,
                teacher_logp_NC=batch.teacher_logp_NC,
                temperature=temperature,
            ).mean()
            return kd + alpha * ce, {"kd": kd.item(), "ce": ce.item()}
        case _:
            assert_never(method)
