"""What a call of `linear_divergence` must satisfy, said in one sentence each.

Dimension key: N rows, D width, V vocabulary, K stored candidates.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from potstill.losses.divergences import ForwardKl, form_of
from potstill.losses.problem import Loss
from potstill.signals import Hidden, Logits, Sampled, Signal, TopK


def check_call(hidden_ND: Tensor, weight_VD: Tensor, teacher: Signal, loss: Loss) -> None:
    """Raises ValueError."""
    count, width = hidden_ND.shape
    if not loss.temperature > 0:
        raise ValueError(f"temperature is {loss.temperature}, but must be above 0")
    if weight_VD.shape[1] != width:
        raise ValueError(f"student_head_VD is {weight_VD.shape[1]} wide, but student_hidden_ND is {width}")
    if weight_VD.dtype not in (hidden_ND.dtype, torch.float32):
        raise ValueError(f"student_hidden_ND is {hidden_ND.dtype}, but its head {weight_VD.dtype}: cast one of them")
    for column in (loss.weights_N, loss.targets_N):
        if column is not None and column.shape != (count,):
            raise ValueError(f"weights_N or targets_N has shape {tuple(column.shape)} for {count} rows")
    _check_teacher(teacher, loss, count)


def _check_teacher(teacher: Signal, loss: Loss, count: int) -> None:
    divergence, temperature = loss.divergence, loss.temperature
    match teacher:
        case Hidden(hidden, head):
            _check_rows(len(hidden), count)
            if head.shape[1] != hidden.shape[1]:
                raise ValueError(f"the teacher's head is {head.shape[1]} wide, its hidden states {hidden.shape[1]}")
        case Logits(logits):
            _check_rows(len(logits), count)
        case TopK(ids, logp, temperature=taken, tail=tail):
            _check_few(ids, logp, count)
            _check_temperature(taken, temperature, "TopK")
            if not tail and not isinstance(divergence, ForwardKl):
                raise ValueError(
                    f"a top-k without its tail does not define '{form_of(divergence).name}': "
                    "keep the tail (TopK(..., tail=True)) or use 'forward_kl'"
                )
        case Sampled(ids, counts, taken):
            _check_few(ids, counts, count)
            _check_temperature(taken, temperature, "Sampled")
            if not isinstance(divergence, ForwardKl):
                raise ValueError(
                    f"sampled counts do not define '{form_of(divergence).name}', which needs the teacher's "
                    "probability of tokens that were not drawn: use 'forward_kl', or TopK or Hidden signals"
                )


def shared_vocabulary(weight_VD: Tensor, teacher: Signal, vocabulary: int | None) -> int:
    """How many outcomes both sides have. Sizes that differ are padding only if somebody says so."""
    sizes = [len(weight_VD)]
    match teacher:
        case Hidden(head_VD=head):
            sizes.append(len(head))
        case Logits(logits):
            sizes.append(logits.shape[1])
        case TopK() | Sampled():
            pass
    if vocabulary is None and len(set(sizes)) > 1:
        raise ValueError(
            f"the student has {sizes[0]} outcomes and the teacher {sizes[1]}: if the rest is padding, "
            "say how many are real with vocabulary="
        )
    if vocabulary is not None and not 1 <= vocabulary <= min(sizes):
        raise ValueError(f"vocabulary is {vocabulary}, but the smaller head has {min(sizes)} outcomes")
    return sizes[0] if vocabulary is None else vocabulary


def on_outcomes(teacher: Signal, outcomes: slice | Tensor) -> Signal:
    """A dense signal on these outcomes alone; sparse ones are taken to count within them already."""
    match teacher:
        case Hidden(head_VD=head, bias_V=bias):
            return replace(teacher, head_VD=head[outcomes], bias_V=None if bias is None else bias[outcomes])
        case Logits(logits):
            return Logits(logits[:, outcomes])
        case TopK() | Sampled():
            return teacher


class NotFinite(ValueError):
    """A loss that is NaN: where it comes from."""


def name_nan(nats_N: Tensor, hidden_ND: Tensor, teacher: Signal) -> None:
    """Raises NotFinite naming the first row that is NaN, and whose fault it is."""
    bad_N = nats_N.isnan()
    if not bad_N.any():
        return
    row = int(bad_N.nonzero()[0])
    if not hidden_ND[row].isfinite().all():
        raise NotFinite(f"row {row} of student_hidden_ND is not finite")
    match teacher:
        case Hidden(hidden) if not hidden[row].isfinite().all():
            raise NotFinite(f"row {row} of the teacher's hidden states is not finite")
        case Logits(logits) if logits[row].isnan().any():
            raise NotFinite(f"row {row} of the teacher's logits holds NaN")
        case TopK(_, logp) if logp[row].isnan().any():
            raise NotFinite(f"row {row} of the teacher's log-probabilities holds NaN")
        case _:
            raise NotFinite(f"the loss of row {row} is NaN: look for values that are not finite in the heads")


def _check_rows(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"the teacher's signal has {found} rows, but student_hidden_ND has {wanted}")


def _check_few(ids_NK: Tensor, values_NK: Tensor, count: int) -> None:
    _check_rows(len(ids_NK), count)
    if ids_NK.shape != values_NK.shape:
        raise ValueError(f"ids have shape {tuple(ids_NK.shape)}, their values {tuple(values_NK.shape)}")


def _check_temperature(taken: float, asked: float, kind: str) -> None:
    if taken != asked:
        raise ValueError(
            f"the {kind} was taken at temperature {taken}, the loss asks for {asked}: use temperature={taken}, "
            "or Hidden or Logits signals, which fit any"
        )
