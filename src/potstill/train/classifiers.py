"""Distil any classifier into any `nn.Module` that gives logits: Hinton, Vinyals and Dean 2015 on plain tensors.

    taught = distil_classifier(student, teacher, images, labels=labels, settings=Distillation(temperature=4.0))

The student minimises T² D(teacher_T || student_T), a mean over all rows, plus alpha x cross-entropy, a mean over the
rows that have a label. A row without one is a transfer row: it bears the soft part alone. Without a teacher the same
function trains on the labels alone, which is the control to compare with.

Dimension key: N rows, B rows of a batch, C classes, L tokens.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.errors import GuardStopped, InputError
from potstill.losses import Divergence, Name, divergence
from potstill.records import Progress, Score, Watch
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics

UNLABELLED = -100
"""The label of a row whose label is not known (what torch's cross-entropy ignores)."""

Inputs = Tensor | Mapping[str, Tensor]
"""The model's one argument, or its keyword arguments (a tokenizer's output): tensors of N rows."""

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """What is minimised, and the loop that does it: AdamW, a linear rise of the rate, then a linear fall to 0."""

    temperature: float = 4.0
    alpha: float = 1.0
    t_squared: bool = True
    divergence: Name | Divergence = "forward_kl"
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "epochs", "batch_size", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"Distillation.{name} is {getattr(self, name)}", way_out="give a number above 0")
        for name in ("alpha", "weight_decay", "warmup"):
            if not getattr(self, name) >= 0:
                raise InputError(f"Distillation.{name} is {getattr(self, name)}", way_out="give 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Where the training of one arm of a run leaves what it did, and how it goes on after a kill."""

    arm: str
    checkpoints: Checkpoints
    checkpoint_seconds: float
    metrics: Metrics
    validate: Callable[[Any], dict[str, Score]]
    validations: int
    watch: Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """What training took: optimizer steps, rows that bore loss, seconds over all restarts, the last batch's loss."""

    steps: int
    rows: int
    seconds: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows that bear loss. `label_share` is the labelled part of them all."""

    inputs: Mapping[str, Tensor]
    teacher_logits_NC: Tensor | None
    label_N: Tensor
    label_share: float

    def __len__(self) -> int:
        return len(self.label_N)

    def take(self, rows: list[int], device: torch.device) -> Rows:
        inputs = {name: value[rows].to(device) for name, value in self.inputs.items()}
        logits_NC = self.teacher_logits_NC
        return Rows(
            inputs=unpadded(inputs),
            teacher_logits_NC=None if logits_NC is None else logits_NC[rows].to(device),
            label_N=self.label_N[rows].to(device),
            label_share=self.label_share,
        )


def distil_classifier(
    student: nn.Module,
    teacher: nn.Module | Tensor | None,
    inputs: Inputs,
    *,
    labels: Tensor | None = None,
    settings: Distillation = Distillation(),
    traces: Traces | None = None,
) -> Taught:
    """Train `student` in place on `inputs`; ends in evaluation mode.

    `teacher` is a module (asked once for every row, its weights are not touched), its logits (N, C), or None for
    the control on labels alone. `labels` (N,) are class numbers, UNLABELLED where there is none. The result is a pure
    function of the student's weights, the data and the settings. With `traces` a killed run goes on where it was.
    Raises InputError on data that do not fit together and GuardStopped on a loss that is not finite.
    """
    rows = _rows(student, teacher, inputs, labels, settings)
    return _Loop(student, rows, settings, traces).run()


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


def objective(settings: Distillation, student_logits_BC: Tensor, batch: Rows) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch in nats, and its parts. Its mean over the batches of an epoch is the loss of all the rows,
    however the labelled ones fall into batches: each part has its own fixed denominator."""
    loss, parts = student_logits_BC.new_zeros(()), dict[str, float]()
    weight = 1.0
    if batch.teacher_logits_NC is not None:
        t, weight = settings.temperature, settings.alpha
        nats_B = divergence(
            settings.divergence,
            student_logp_NV=torch.log_softmax(student_logits_BC.float() / t, dim=-1),
            teacher_logp_NV=torch.log_softmax(batch.teacher_logits_NC.float() / t, dim=-1),
        )
        kd = nats_B.mean() * (t * t if settings.t_squared else 1.0)
        loss, parts = loss + kd, {"kd": kd.item()}
    if weight and batch.label_share:
        ce = F.cross_entropy(student_logits_BC.float(), batch.label_N, ignore_index=UNLABELLED, reduction="sum")
        ce = ce / (len(batch) * batch.label_share)
        loss, parts = loss + weight * ce, {**parts, "ce": ce.item()}
    return loss, parts


def row_order(n: int, *, seed: int, epoch: int) -> list[int]:
    """The rows of an epoch, shuffled: a pure function of its arguments."""
    order = list(range(n))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def unpadded(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the last columns that no row attends to, where there is an `attention_mask` (B, L)."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return dict(inputs)
    longest = int(mask.any(dim=0).nonzero().max()) + 1
    return {name: value[:, :longest] if value.shape == mask.shape else value for name, value in inputs.items()}


class _Loop:
    """A student in training and how far it is; all of it goes into a checkpoint and comes back to the bit."""

    def __init__(self, student: nn.Module, rows: Rows, settings: Distillation, traces: Traces | None) -> None:
        self._student, self._rows, self._settings, self._traces = student, rows, settings, traces
        self._device = _device(student)
        self._trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._step, self._seconds, self._loss = 0, 0.0, math.nan
        self._per_epoch = math.ceil(len(rows) / settings.batch_size)
        self._total = self._per_epoch * settings.epochs
        self._fingerprint = _fingerprint(student, rows, settings) if traces else ""

    def run(self) -> Taught:
        if self._traces:
            self._restore(self._traces)
        start = saved = time.perf_counter()
        before, order = self._seconds, list[int]()
        while self._step < self._total:
            epoch, position = divmod(self._step, self._per_epoch)
            if position == 0 or not order:
                order = row_order(len(self._rows), seed=self._settings.seed, epoch=epoch)
            size = self._settings.batch_size
            logged = self._learn(self._rows.take(order[position * size : (position + 1) * size], self._device))
            self._seconds = before + time.perf_counter() - start
            if self._traces:
                self._tell(self._traces, logged)
                due = time.perf_counter() - saved > self._traces.checkpoint_seconds
                if due and self._step < self._total:
                    self._save(self._traces)
                    saved = time.perf_counter()
        self._student.eval()
        rows = len(self._rows) * self._settings.epochs
        return Taught(steps=self._step, rows=rows, seconds=self._seconds, loss=self._loss)

    def _learn(self, batch: Rows) -> dict[str, float]:
        """Forward, backward, update; what is worth logging of it."""
        rate = self._settings.learning_rate * schedule(self._step, self._total, self._settings.warmup)
        self._student.train()
        with drawn_from(f"{self._settings.seed}/{self._step}", self._device):
            logits_BC = _forward(self._student, batch.inputs)
        loss, parts = objective(self._settings, logits_BC, batch)
        self._loss = loss.item()
        if not math.isfinite(self._loss):
            raise GuardStopped(
                f"training of the classifier stopped at step {self._step}: the loss is {self._loss}",
                way_out="lower the learning rate; the weights are those of the last good step",
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._settings.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._student.eval()
        self._step += 1
        return {"learning_rate": rate, "loss": self._loss, **parts, "gradient_norm": norm.item()}

    def _tell(self, traces: Traces, logged: dict[str, float]) -> None:
        if self._step in {math.ceil(self._total * (i + 1) / traces.validations) for i in range(traces.validations)}:
            logged |= {f"validation_{name}": score.value for name, score in traces.validate(self._student).items()}
        traces.metrics.append({"arm": traces.arm, "step": self._step, **logged})
        note = f"loss {self._loss:.3f}"
        traces.watch(Progress(stage="train", what=traces.arm, done=self._step, total=self._total, note=note))

    def _save(self, traces: Traces) -> None:
        tensors = {f"model.{name}": value.detach().contiguous() for name, value in self._state().items()}
        for name, parameter in self._trained.items():
            state = self._optimizer.state[parameter]
            tensors |= {f"optimizer.{name}.{key}": state[key] for key in _MOMENTS}
        progress = {"seconds": self._seconds, "loss": self._loss, "fingerprint": self._fingerprint}
        traces.checkpoints.save(self._step, tensors, progress)

    @torch.no_grad()
    def _restore(self, traces: Traces) -> None:
        found = traces.checkpoints.newest()
        if found is not None and found[1]["fingerprint"] == self._fingerprint:
            tensors, progress = found
            for name, value in self._state().items():
                value.copy_(tensors[f"model.{name}"])
            for name, parameter in self._trained.items():
                self._optimizer.state[parameter] = {k: tensors[f"optimizer.{name}.{k}"] for k in _MOMENTS}
            self._step, self._seconds, self._loss = (progress[k] for k in ("step", "seconds", "loss"))
        else:
            traces.checkpoints.clear()
        traces.metrics.rewind(traces.arm, self._step)

    def _state(self) -> dict[str, Tensor]:
        """What training changes: the trained weights, and buffers such as running means."""
        return {**self._trained, **dict(self._student.named_buffers())}


def schedule(step: int, total: int, warmup: float) -> float:
    """Linear up over the first `warmup` of the steps, then linear down to 0 after the last."""
    rise = warmup * total
    return min((step + 1) / (rise + 1), (total - step) / max(total - rise, 1.0))


@contextmanager
def drawn_from(seed: str, device: torch.device) -> Generator[None]:
    """Torch's draws inside (initial weights, dropout) depend on `seed` alone, and leave no trace outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]))
        yield


def _rows(
    student: nn.Module, teacher: nn.Module | Tensor | None, inputs: Inputs, labels: Tensor | None, how: Distillation
) -> Rows:
    """The rows that bear loss, checked. Raises InputError."""
    named = _named(inputs)
    n = _count(named)
    with torch.inference_mode():
        first = {name: value[:1].to(_device(student)) for name, value in named.items()}
        classes = _forward(student.eval(), unpadded(first)).shape[-1]
    label_N = torch.full((n,), UNLABELLED) if labels is None else labels.long().cpu()
    known_N = label_N != UNLABELLED
    wrong = label_N[known_N & ((label_N < 0) | (label_N >= classes))]
    if len(label_N) != n or len(wrong):
        told = f"a label is {wrong[0]}" if len(wrong) else f"there are {len(label_N)} labels for {n} rows"
        raise InputError(
            f"labels do not fit: {told}",
            way_out=f"give a class from 0 to {classes - 1} a row, or {UNLABELLED} where it is not known",
        )
    if teacher is None:
        if not known_N.any():
            raise InputError("there is neither a teacher nor a label to learn from", way_out="give one of them")
        named = {name: value[known_N.to(value.device)] for name, value in named.items()}
        return Rows(inputs=named, teacher_logits_NC=None, label_N=label_N[known_N], label_share=1.0)
    logits_NC = logits_of(teacher, inputs, batch_size=how.batch_size) if isinstance(teacher, nn.Module) else teacher
    logits_NC = logits_NC.detach().float().cpu()
    if logits_NC.shape != (n, classes):
        raise InputError(
            f"the teacher's logits have the shape {tuple(logits_NC.shape)}, the student's ({n}, {classes})",
            way_out="give teacher and student the same classes, in the same order",
        )
    share = known_N.float().mean().item()
    return Rows(inputs=named, teacher_logits_NC=logits_NC, label_N=label_N, label_share=share)


def _named(inputs: Inputs) -> dict[str, Tensor]:
    return {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)


def _count(named: Mapping[str, Tensor]) -> int:
    counts = {len(value) for value in named.values()}
    if len(counts) != 1 or 0 in counts:
        shapes = ", ".join(f"{name or 'inputs'} {tuple(value.shape)}" for name, value in named.items())
        raise InputError(f"the inputs are not all of the same N > 0 rows: {shapes or 'none'}", way_out="mend them")
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


def _fingerprint(student: nn.Module, rows: Rows, settings: Distillation) -> str:
    """Of everything the result depends on: a checkpoint of something else is not gone on from."""
    digest = hashlib.sha256(repr(settings).encode())
    tensors = {**student.state_dict(), **rows.inputs, "labels": rows.label_N}
    if rows.teacher_logits_NC is not None:
        tensors["teacher"] = rows.teacher_logits_NC
    for name, value in tensors.items():
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
