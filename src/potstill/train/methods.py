"""What each method minimises on a batch. A method is a small frozen value of the recipe; dispatch is this one `match`.

Terms are sums over their own rows; the loop divides each by its own count, taken over the whole step.
"""

from __future__ import annotations

from typing import Any, assert_never

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.losses import Sampled, choice_kd, choice_logp, linear_divergence
from potstill.models.forward import head_logits, logit_terms
from potstill.recipe import LogitKd, Sft
from potstill.train.batch import Batch


def terms(
    method: Sft | LogitKd, model: PreTrainedModel, hidden_RD: Tensor, batch: Batch
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch in nats (a scalar to call backward on) and what is worth logging.

    Cross-entropy is a mean over the answers' tokens with the full vocabulary, so that the model learns to write the
    answer and to stop; the soft targets are a mean over prompts on the choices alone.
    """
    match method:
        case Sft():
            ce = token_nats(model, hidden_RD[: len(batch.target_R)], batch.target_R, over=len(batch.target_R)).sum()
            return ce, {"ce": ce.item()}
        case LogitKd(temperature=temperature, alpha=alpha):
            logp_RV = torch.log_softmax(head_logits(model, hidden_RD), dim=-1)
            targets = len(batch.target_R)
            ce = -logp_RV[torch.arange(targets), batch.target_R].mean()
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


def token_nats(model: PreTrainedModel, hidden_RD: Tensor, target_R: Tensor, *, over: int = 1) -> Tensor:
    """-ln q(target) / over, shape (R,): cross-entropy as the forward KL from a teacher that was drawn once. The logits
    of long answers never exist all at once, and a frozen head's gradient is not computed."""
    head: Any = model.get_output_embeddings()
    scale, softcap = logit_terms(model)
    once_R1 = target_R.unsqueeze(-1)
    return linear_divergence(
        hidden_RD.float(),
        head.weight.float(),
        teacher=Sampled(once_R1, torch.ones_like(once_R1)),
        weights_N=None if over == 1 else hidden_RD.new_full((len(target_R),), 1 / over, dtype=torch.float32),
        student_bias_V=head.bias,
        logit_scale=scale,
        softcap=softcap,
    )
