"""Distil any classifier into any `nn.Module` that gives logits: Hinton, Vinyals and Dean 2015 on plain tensors.

    distil_classifier(student, teacher, images, labels=labels, settings=Distillation(temperature=4.0))

The student minimises T² D(teacher_T || student_T), a mean over all rows, plus alpha x cross-entropy, a mean over the
rows that have a label. A row without one is a transfer row: it bears the soft part alone. Without a teacher the same
function trains on the labels alone, which is the control to compare with.

Dimension key: N rows, B rows of a pass, C classes, L tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from potstill.errors import InputError
from potstill.losses import Divergence, Name, divergence
from potstill.recipe.train import Loop
from potstill.recipe.values import Count, Positive, Seed
from potstill.records import Score
from potstill.train.batch import passes
from potstill.train.data import Data
from potstill.train.loop import Fitted, Training, fit
from potstill.train.methods import Logged
from potstill.train.objective import Pass, Step
from potstill.train.traces import Traces
from potstill.train.world import World

UNLABELLED = -100
"""The label of a row whose label is not known (what torch's cross-entropy ignores)."""

Inputs = Tensor | Mapping[str, Tensor]
"""The model's one argument, or its keyword arguments (a tokenizer's output): tensors of N rows."""


class Distillation(Loop):
    """What is minimised, and the settings of the loop that does it."""

    temperature: Positive = 4.0
    alpha: Annotated[float, Field(ge=0)] = 1.0
    t_squared: bool = True
    divergence: Name | Divergence = "forward_kl"
    epochs: Count = 20
    batch_size: Count = 64
    learning_rate: Positive = 1e-3
    seed: Seed = 0


_BY_DEFAULT = Distillation()  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True, slots=True)
class InputRow:
    """Which row of the inputs, and how many tokens are read of it (1 where there is no `attention_mask`)."""

    at: int
    tokens: int

    @property
    def targets(self) -> int:
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The objective of a classifier, with its data. `label_share` is the labelled part of the rows that bear loss."""

    settings: Distillation
    inputs: Mapping[str, Tensor]
    teacher_logits_NC: Tensor | None
    label_N: Tensor
    label_share: float

    @property
    def data(self) -> Data[InputRow]:
        """The rows that bear loss: all, or without a teacher those that have a label."""
        mask = self.inputs.get("attention_mask")
        tokens = [1] * len(self.label_N) if mask is None else mask.sum(1).tolist()
        labelled = (self.label_N != UNLABELLED).tolist()
        every = self.teacher_logits_NC is not None
        return Data([InputRow(at, count) for at, count in enumerate(tokens) if every or labelled[at]])

    def passes(self, step: Step[InputRow], world: World) -> Sequence[Sequence[InputRow]]:
        return passes(step.rows, step.settings.pass_tokens)

    def prepare(self, model: nn.Module, part: Sequence[InputRow], step: Step[InputRow]) -> Pass:
        at, device = [row.at for row in part], _device(model)
        inputs = unpadded({name: value[at].to(device) for name, value in self.inputs.items()})
        return Pass(lambda: self.loss(_forward(model, inputs), at, of=len(step.rows)), sum(row.tokens for row in part))

    def describe(self, row: InputRow) -> dict[str, Any]:
        return {"row": row.at, "label": int(self.label_N[row.at])}

    def loss(self, student_logits_BC: Tensor, at: Sequence[int], *, of: int) -> tuple[Tensor, Logged]:
        """The part that these rows have in the loss of a step `of` so many, in nats. Its mean over the steps of an
        epoch is the loss of all the rows, however the labelled ones fall into steps: each term has its own fixed
        denominator."""
        how, device = self.settings, student_logits_BC.device
        student_logits_BC, loss, logged = student_logits_BC.float(), student_logits_BC.new_zeros(()).float(), Logged()
        if self.teacher_logits_NC is not None:
            t, teacher_logits_BC = how.temperature, self.teacher_logits_NC[at].to(device)
            nats_B = divergence(
                how.divergence,
                student_logp_NV=torch.log_softmax(student_logits_BC / t, dim=-1),
                teacher_logp_NV=torch.log_softmax(teacher_logits_BC / t, dim=-1),
            )
            kd = nats_B.sum() / of * (t * t if how.t_squared else 1.0)
            loss, logged = loss + kd, {"kd": kd.item()}
        weight = 1.0 if self.teacher_logits_NC is None else how.alpha
        if weight and self.label_share:
            label_B = self.label_N[at].to(device)
            ce = F.cross_entropy(student_logits_BC, label_B, ignore_index=UNLABELLED, reduction="sum")
            ce = ce / (of * self.label_share)
            loss, logged = loss + weight * ce, {**logged, "ce": ce.item()}
        return loss, logged


def distil_classifier(
    student: nn.Module,
    teacher: nn.Module | Tensor | None,
    inputs: Inputs,
    *,
    labels: Tensor | None = None,
    settings: Distillation = _BY_DEFAULT,
) -> Fitted:
    """Train `student` in place on `inputs`, in memory alone; ends in evaluation mode, on the device where it was.

    `teacher` is a module (asked once for every row, its weights are not touched), its logits (N, C), or None for
    the control on labels alone. `labels` (N,) are class numbers, UNLABELLED where there is none. The result is a pure
    function of the student's weights, the data and the settings. Raises InputError on data that do not fit together
    and GuardStopped on a loss or a gradient that is not finite.
    """
    return train_classifier(student, classification(student, teacher, inputs, labels, settings))


def train_classifier(
    student: nn.Module,
    objective: Classification,
    *,
    validate: Callable[[Any], dict[str, Score]] = lambda _: {},
    traces: Traces | None = None,
) -> Fitted:
    """The same with an objective that is made already. With `traces` a killed training goes on where it was, unless the
    first weights, the data or the settings are others."""
    settings, device = objective.settings, _device(student)
    if traces is not None:
        traces = replace(traces, fingerprint=f"{traces.fingerprint} {_fingerprint(student, objective)}")
    training = Training(
        data=objective.data,
        objective=objective,
        settings=settings,
        seed=settings.seed,
        validate=validate,
        traces=traces,
    )
    draws = torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else [])
    with _checkpointed(student, settings), draws:
        fitted = fit(student, training)
    student.eval().to(device)
    return fitted


def classification(
    student: nn.Module,
    teacher: nn.Module | Tensor | None,
    inputs: Inputs,
    labels: Tensor | None,
    settings: Distillation,
) -> Classification:
    """What there is to learn, checked. Raises InputError."""
    named = _named(inputs)
    n, classes = _count(named), _classes(student, named)
    label_N = torch.full((n,), UNLABELLED) if labels is None else labels.long().cpu()
    known_N = label_N != UNLABELLED
    wrong = label_N[known_N & ((label_N < 0) | (label_N >= classes))]
    if len(label_N) != n or len(wrong):
        told = f"a label is {wrong[0]}" if len(wrong) else f"there are {len(label_N)} labels for {n} rows"
        raise InputError(
            f"labels do not fit: {told}",
            way_out=f"give a class from 0 to {classes - 1} per row, or {UNLABELLED} where it is not known",
        )
    if teacher is None and not known_N.any():
        raise InputError("there is neither a teacher nor a label to learn from", way_out="give one of them")
    logits_NC = (
        logits_of(teacher, inputs, batch_size=settings.batch_size) if isinstance(teacher, nn.Module) else teacher
    )
    if logits_NC is not None and logits_NC.shape != (n, classes):
        raise InputError(
            f"the teacher's logits have the shape {tuple(logits_NC.shape)}, the student's ({n}, {classes})",
            way_out="give teacher and student the same classes, in the same order",
        )
    return Classification(
        settings=settings,
        inputs=named,
        teacher_logits_NC=None if logits_NC is None else logits_NC.detach().float().cpu(),
        label_N=label_N,
        label_share=1.0 if teacher is None else known_N.float().mean().item(),
    )


def logits_of(model: nn.Module, inputs: Inputs, *, batch_size: int = 256) -> Tensor:
    """fp32 logits (N, C) in evaluation mode, with no gradient; the module is left in the mode it was in."""
    named, device = _named(inputs), _device(model)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        found = [
            _forward(model, unpadded({name: value[i : i + batch_size].to(device) for name, value in named.items()}))
            for i in range(0, _count(named), batch_size)
        ]
    model.train(was_training)
    return torch.cat(found).float().cpu().clone()


def unpadded(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the last columns that no row attends to, where there is an `attention_mask` (B, L)."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return dict(inputs)
    longest = int(mask.any(dim=0).nonzero().max()) + 1
    return {name: value[:, :longest] if value.shape == mask.shape else value for name, value in inputs.items()}


@contextmanager
def drawn_from(seed: str, device: torch.device) -> Generator[None]:
    """Torch's draws inside (initial weights) depend on `seed` alone, and leave no trace outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]))
        yield


@contextmanager
def _checkpointed(student: nn.Module, settings: Loop) -> Generator[None]:
    """With `gradient_checkpointing`, transformers' own. Raises InputError for a module that has none."""
    if not settings.gradient_checkpointing:
        yield
        return
    if not (isinstance(student, PreTrainedModel) and student.supports_gradient_checkpointing):
        raise InputError(
            f"'gradient_checkpointing' is set, but {type(student).__name__} cannot compute its layers again",
            way_out="leave it out, and lower pass_tokens if memory is short",
        )
    student.activation_checkpointing_enable({"use_reentrant": False})
    student.disable_input_require_grads()  # which only re-entrant checkpoints need
    try:
        yield
    finally:
        student.activation_checkpointing_disable()


def _classes(student: nn.Module, named: Mapping[str, Tensor]) -> int:
    with torch.inference_mode():
        first = {name: value[:1].to(_device(student)) for name, value in named.items()}
        return _forward(student.eval(), unpadded(first)).shape[-1]


def _named(inputs: Inputs) -> dict[str, Tensor]:
    return {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)


def _count(named: Mapping[str, Tensor]) -> int:
    counts = {len(value) for value in named.values()}
    if len(counts) != 1 or 0 in counts:
        shapes = ", ".join(f"{name or 'inputs'} {tuple(value.shape)}" for name, value in named.items())
        raise InputError(f"the inputs are not all of the same N > 0 rows: {shapes or 'none'}", way_out="fix them")
    return counts.pop()


def _forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits (B, C) of a module that returns them, or of a transformers model that returns them as `.logits`."""
    found: Any = model(inputs[""]) if "" in inputs else model(**inputs)
    logits = found if isinstance(found, Tensor) else getattr(found, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(found).__name__
        raise InputError(
            f"{type(model).__name__} returns {shape}", way_out="a classifier returns logits (rows, classes)"
        )
    return logits


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _fingerprint(student: nn.Module, objective: Classification) -> str:
    """Of everything the result depends on."""
    settings = objective.settings.model_copy(update={"report_to": ()})
    digest = hashlib.sha256(repr(settings).encode())
    tensors = {**student.state_dict(), **objective.inputs, "labels": objective.label_N}
    if objective.teacher_logits_NC is not None:
        tensors["teacher"] = objective.teacher_logits_NC
    for name, value in tensors.items():
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
