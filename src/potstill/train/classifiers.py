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

Labels = Tensor | Sequence[int]
"""Class numbers (N,), UNLABELLED where there is none."""


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
    labels: Labels | None = None,
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
    labels: Labels | None,
    settings: Distillation,
) -> Classification:
    """What there is to learn, checked. Raises InputError."""
    named = _named(inputs)
    n, classes = _count(named), _classes(student, named)
    label_N = torch.full((n,), UNLABELLED) if labels is None else _class_numbers(labels, n, classes)
    known_N = label_N != UNLABELLED
    if teacher is None and not known_N.any():
        raise InputError("there is neither a teacher nor a label to learn from", way_out="give one of them")
    made = Classification(
        settings=settings,
        inputs=named,
        teacher_logits_NC=None if teacher is None else _teacher_logits(teacher, inputs, (n, classes), settings),
        label_N=label_N,
        label_share=1.0 if teacher is None else known_N.float().mean().item(),
    )
    if len(made.data.rows) % settings.batch_size == 1 or settings.batch_size == 1:
        _require_rows_alone(student, named)
    return made


def _class_numbers(labels: Labels, n: int, classes: int) -> Tensor:
    way_out = f"give a class from 0 to {classes - 1} per row, or {UNLABELLED} where it is not known"
    try:
        found = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels are no numbers: {error}", way_out=way_out) from None
    if found.shape == (n, classes) and n:
        raise InputError(
            f"labels have the shape {tuple(found.shape)}: probabilities, or one number per class",
            way_out="give labels.argmax(-1), or their logarithms as the teacher's logits",
        )
    if found.shape != (n,):
        told = f"there are {len(found)} labels" if found.dim() == 1 else f"they have the shape {tuple(found.shape)}"
        raise InputError(f"labels do not fit: {told} for {n} rows", way_out=way_out)
    label_N = found.long()
    wrong_N = (label_N != found) | ((label_N != UNLABELLED) & ((label_N < 0) | (label_N >= classes)))
    if wrong_N.any():
        at = int(wrong_N.nonzero()[0])
        raise InputError(f"labels do not fit: that of row {at} is {found[at].item():g}", way_out=way_out)
    return label_N


def _teacher_logits(
    teacher: nn.Module | Tensor, inputs: Inputs, shape: tuple[int, int], settings: Distillation
) -> Tensor:
    """In fp32, checked: what is wrong with them would be taken for a learning rate that is too high."""
    found = logits_of(teacher, inputs, batch_size=settings.batch_size) if isinstance(teacher, nn.Module) else teacher
    if not isinstance(found, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"the teacher is a {type(found).__name__}", way_out="give a module, or a tensor of logits")
    if found.shape != shape:
        raise InputError(
            f"the teacher's logits have the shape {tuple(found.shape)}, the student's {shape}",
            way_out="give teacher and student the same classes, in the same order",
        )
    logits_NC = found.detach().float().cpu()
    bad_N = torch.log_softmax(logits_NC, dim=-1).isnan().any(dim=-1)
    if settings.divergence != "forward_kl":  # which weighs what the teacher rules out with nothing
        bad_N |= logits_NC.isinf().any(dim=-1)
    if bad_N.any():
        at = int(bad_N.nonzero()[0])
        raise InputError(
            f"the teacher's logits of row {at} are {logits_NC[at].tolist()}, from which there is nothing to learn with "
            f"{settings.divergence}",
            way_out="give finite logits: see what the teacher makes of that row",
        )
    return logits_NC


def _require_rows_alone(student: nn.Module, named: Mapping[str, Tensor]) -> None:
    """Raises InputError where a row that is alone in its step cannot be learnt: batch norm would divide by a spread of
    nothing. The student is left as it is."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules()):  # pyright: ignore[reportPrivateUsage]
        return
    before = [buffer.clone() for buffer in student.buffers()]
    with torch.no_grad(), drawn_from("a row alone", _device(student)):
        try:
            _forward(student.train(), unpadded(_first(student, named)))
        finally:
            student.eval()
            for buffer, value in zip(student.buffers(), before, strict=True):
                buffer.copy_(value)


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
        return _forward(student.eval(), unpadded(_first(student, named))).shape[-1]


def _first(student: nn.Module, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:1].to(_device(student)) for name, value in named.items()}


def _named(inputs: Inputs) -> dict[str, Tensor]:
    found = inputs if isinstance(inputs, Mapping) else {"": inputs}
    for name, value in found.items():
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            what = f"the inputs{name and f' {name!r}'} are a {type(value).__name__}"
            raise InputError(what, way_out="give tensors of N rows: torch.as_tensor(...)")
        if value.is_floating_point() and value.isnan().any():
            row = int(value.isnan().nonzero()[0, 0])
            raise InputError(f"the inputs{name and f' {name!r}'} hold NaN, first in row {row}", way_out="fix that row")
    return dict(found)


def _count(named: Mapping[str, Tensor]) -> int:
    counts = {len(value) for value in named.values()}
    if len(counts) != 1 or 0 in counts:
        shapes = ", ".join(f"{name or 'inputs'} {tuple(value.shape)}" for name, value in named.items())
        raise InputError(f"the inputs are not all of the same N > 0 rows: {shapes or 'none'}", way_out="fix them")
    return counts.pop()


def _forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits (B, C) of a module that returns them, or of a transformers model that returns them as `.logits`."""
    try:
        found: Any = model(inputs[""]) if "" in inputs else model(**inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"the batch norm of {type(model).__name__} cannot learn from a row that is alone in its step or pass",
            way_out="choose another batch_size, or more pass_tokens, so that no row is left over",
        ) from None
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
