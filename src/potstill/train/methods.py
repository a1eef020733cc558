"""What each method minimises on a pass. A method is a small frozen value of the recipe; dispatch is this one `match`.

Terms come divided by the whole step's count, so passes and processes just add up.

Dimension key: R rows of hidden states, N target tokens, D width, V vocabulary, P prompts, C choices, O tokens of own
answers, U what a ratio is of: a token, or a whole answer.
"""

from __future__ import annotations

from typing import Any, assert_never

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.losses import (
    Account,
    CrossEntropy,
    Divergence,
    ForwardKl,
    Hidden,
    Jeffreys,
    Jsd,
    ReverseKl,
    Sampled,
    Signal,
    SkewForwardKl,
    SkewReverseKl,
    TotalVariation,
    choice_kd,
    choice_logp,
    linear_divergence,
)
from potstill.losses.estimators import policy_gradient, sequence_sums
from potstill.models.forward import head_logits, logit_terms
from potstill.recipe.methods import LogitKd, Method, PolicyGradient, Sft
from potstill.train.batch import Batch, Choices, OwnTokens

Logged = dict[str, float]

SUPPORT = 20
"""How many of the teacher's most probable tokens are its support."""


def terms(
    method: Method,
    model: PreTrainedModel,
    hidden_RD: Tensor,
    batch: Batch,
    *,
    signal: Signal | None = None,
    observe: bool = True,
) -> tuple[Tensor, Logged]:
    """A pass's part of the step's loss in nats (a scalar to call backward on) and what is worth logging of it.

    Cross-entropy is a mean over the answers' tokens with the full vocabulary, so that the model learns to write the
    answer and to stop. Soft targets are a mean over the same tokens where the teacher scores (`signal`), or over
    prompts on the choices alone. Own answers that were judged add a policy gradient; its value says little, what is
    logged of it more. `observe`: whether the parts of a soft loss are wanted too.
    """
    match method:
        case Sft():
            ce = token_nats(model, hidden_RD[: len(batch.target_N)], batch.target_N, weight_N=batch.weight_N).sum()
            return ce, {"ce": ce.item()}
        case LogitKd():
            if batch.choices is not None:
                return _choice_terms(method, model, hidden_RD, batch, batch.choices)
            assert signal is not None, "logit_kd on whole answers needs a teacher that scores"
            loss, logged = _token_terms(method, model, hidden_RD, batch, signal, observe=observe)
            if batch.own is None:
                return loss, logged
            gained, more = _policy_terms(model, hidden_RD, batch, batch.own)
            return loss + gained, more | logged
        case PolicyGradient():
            return _own_and_kept(method, model, hidden_RD, batch)
        case _:
            assert_never(method)


def divergence_of(method: LogitKd) -> Divergence:
    """The loss core's value of what the recipe names."""
    match method.divergence:
        case "forward_kl":
            return ForwardKl()
        case "reverse_kl":
            return ReverseKl()
        case "jeffreys":
            return Jeffreys()
        case "jsd":
            return Jsd(method.beta)
        case "skew_forward_kl":
            return SkewForwardKl(method.skew)
        case "skew_reverse_kl":
            return SkewReverseKl(method.skew)
        case "total_variation":
            return TotalVariation()


def token_nats(
    model: PreTrainedModel, hidden_ND: Tensor, target_N: Tensor, *, weight_N: Tensor | None = None
) -> Tensor:
    """-weight ln q(target), shape (N,): cross-entropy as the forward KL from a teacher that was drawn once. The logits
    of long answers never exist all at once, and a frozen head's gradient is not computed."""
    once_N1 = target_N.unsqueeze(-1)
    once = Sampled(once_N1, torch.ones_like(once_N1))
    return linear_divergence(**_student(model, hidden_ND), teacher=once, weights_N=weight_N)


def compared(model: PreTrainedModel, hidden_ND: Tensor, target_N: Tensor, *, teacher: Hidden) -> Account:
    """KL(student || teacher) at temperature 1, token by token, and what both say of the targets; without gradient."""
    seen: list[Account] = []
    student = _student(model, hidden_ND)
    linear_divergence(
        **student,
        vocabulary=min(len(student["student_head_VD"]), len(teacher.head_VD)),
        teacher=teacher,
        divergence=ReverseKl(),
        cross_entropy=CrossEntropy(target_N, weight=0.0),
        observe=seen.append,
    )
    return seen[0]


def _token_terms(
    method: LogitKd, model: PreTrainedModel, hidden_RD: Tensor, batch: Batch, signal: Signal, *, observe: bool
) -> tuple[Tensor, Logged]:
    """The divergence and the cross-entropy of every target out of one pass over its logits."""
    seen: list[Account] = []
    everywhere = bool(batch.scored_N.all())
    at = slice(None) if everywhere else batch.scored_N
    weight_N, student = batch.weight_N[at], _student(model, hidden_RD[at])
    heads = [len(student["student_head_VD"]), *([len(signal.head_VD)] if isinstance(signal, Hidden) else [])]
    loss = linear_divergence(
        **student,
        vocabulary=min(heads),  # tokens are shared (checked): what one head has beyond the other is padding
        teacher=signal,
        divergence=divergence_of(method),
        weights_N=weight_N,
        temperature=method.temperature,
        t_squared=True,
        cross_entropy=CrossEntropy(batch.target_N[at], weight=method.alpha) if method.alpha or observe else None,
        observe=seen.append if observe else None,
    ).sum()
    if not everywhere and method.alpha:
        rest = ~batch.scored_N
        nats_N = token_nats(model, hidden_RD[rest], batch.target_N[rest], weight_N=batch.weight_N[rest])
        loss = loss + method.alpha * nats_N.sum()
    if not seen:
        return loss, {}
    account = seen[0]
    logged = {"kd": account.divergence_N, "ce": account.cross_entropy_N, "entropy": account.observed.student_entropy_N}
    if account.observed.agreement_N is not None:
        logged["agreement"] = account.observed.agreement_N
    if batch.written_N is not None:
        logged |= _of_own_text(account, batch.written_N[at])
    return loss, {name: (value_N * weight_N).sum().item() for name, value_N in logged.items()}


def _own_and_kept(
    method: PolicyGradient, model: PreTrainedModel, hidden_ND: Tensor, batch: Batch
) -> tuple[Tensor, Logged]:
    """The policy gradient on the student's own answers, cross-entropy on the kept ones."""
    loss, logged = hidden_ND.new_zeros((), dtype=torch.float32), Logged()
    kept_N = torch.ones_like(batch.scored_N)
    if batch.own is not None:
        kept_N[batch.own.at_O] = False
        loss, logged = _policy_terms(model, hidden_ND, batch, batch.own, method)
    if bool(kept_N.any()):
        ce = token_nats(model, hidden_ND[kept_N], batch.target_N[kept_N], weight_N=batch.weight_N[kept_N]).sum()
        loss, logged = loss + ce, {**logged, "ce": ce.item()}
    return loss, logged


def _policy_terms(
    model: PreTrainedModel, hidden_ND: Tensor, batch: Batch, own: OwnTokens, method: PolicyGradient | None = None
) -> tuple[Tensor, Logged]:
    """Two walks over the logits: ln q alone, which says what each token's gradient is to be multiplied by, then that
    gradient. A ratio is of a token, or of a whole answer; the importance of a token drawn from a mixture with the
    teacher is the token's own at either level (Gu et al. 2024, MiniLLM, section 2.2), and no part of what is clipped.
    """
    hidden_OD, target_O, weight_O = hidden_ND[own.at_O], batch.target_N[own.at_O], batch.weight_N[own.at_O]
    with torch.no_grad():
        logp_O = -token_nats(model, hidden_OD, target_O)
    logp_O.requires_grad_()
    whole_answers, clip = method is not None and method.level == "sequence", method and method.clip
    unit_O = own.answer_O if whole_answers else torch.arange(len(logp_O), device=logp_O.device)
    units = int(unit_O[-1]) + 1
    loss_U = policy_gradient(
        student_logp_N=sequence_sums(logp_O, sequence_N=unit_O, sequences=units),
        sampler_logp_N=sequence_sums(own.logp_O, sequence_N=unit_O, sequences=units),
        advantage_N=_of_units(own.advantage_O, unit_O, units),
        clip=clip,
    )
    loss = (loss_U * _of_units(weight_O, unit_O, units)).sum()
    (slope_O,) = torch.autograd.grad(loss, logp_O)
    surrogate = token_nats(model, hidden_OD, target_O, weight_N=-slope_O * own.importance_O).sum()
    gap = ((logp_O.detach() - own.logp_O).abs() * weight_O).sum()
    logged = {"policy": loss.item(), "own_share": weight_O.sum().item(), "log_probability_gap": gap.item()}
    if own.log_ratio_O is not None:
        logged["reverse_kl"] = -(own.importance_O * own.log_ratio_O * weight_O).sum().item()
    if own.rewards is not None:
        logged["reward"] = own.rewards * batch.share
    return surrogate + (loss - surrogate).detach(), logged


def _of_units(value_O: Tensor, unit_O: Tensor, units: int) -> Tensor:
    """What is the same for all tokens of a unit, once each, shape (U,)."""
    return value_O.new_empty(units).index_copy(0, unit_O, value_O)


def _of_own_text(account: Account, written_N: Tensor) -> dict[str, Tensor]:
    """What the guards want to know of the tokens that the student wrote itself; of others it is 0. `own_share` is what
    to divide by once all passes are in."""
    own_N, seen = ~written_N.isnan(), account.observed
    values: dict[str, Tensor] = {
        "student_entropy": seen.student_entropy_N,
        "log_probability_gap": (account.cross_entropy_N + written_N).abs(),
    }
    if seen.teacher_entropy_N is not None and seen.target_rank_N is not None:  # a served teacher says less
        values |= {
            "teacher_entropy": seen.teacher_entropy_N,
            "support_overlap": (seen.target_rank_N < SUPPORT).float(),
        }
    return {"own_share": own_N.float(), **{name: value_N.where(own_N, 0.0) for name, value_N in values.items()}}


def _choice_terms(
    method: LogitKd, model: PreTrainedModel, hidden_RD: Tensor, batch: Batch, choices: Choices
) -> tuple[Tensor, Logged]:
    logp_RV = torch.log_softmax(head_logits(model, hidden_RD), dim=-1)
    ce = -(logp_RV[torch.arange(len(batch.target_N)), batch.target_N] * batch.weight_N).sum()
    student_PC = choice_logp(
        logp_RV,
        row_M=choices.row_M,
        token_M=choices.token_M,
        choice_M=choices.at_M,
        n_choices=choices.teacher_logp_PC.shape[1],
    )
    kd_P = choice_kd(
        student_logp_NC=student_PC,
        teacher_logp_NC=choices.teacher_logp_PC,
        temperature=method.temperature,
        divergence=divergence_of(method),
    )
    kd = kd_P.sum() * batch.share
    return kd + method.alpha * ce, {"kd": kd.item(), "ce": ce.item()}


def _student(model: PreTrainedModel, hidden_ND: Tensor) -> dict[str, Any]:
    """The student's side of a loss, in the arithmetic of its hidden states."""
    head: Any = model.get_output_embeddings()
    scale, softcap = logit_terms(model)
    return {
        "student_hidden_ND": hidden_ND,
        "student_head_VD": head.weight,
        "student_bias_V": head.bias,
        "logit_scale": scale,
        "softcap": softcap,
    }
