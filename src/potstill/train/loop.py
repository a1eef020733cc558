"""The training loop: plain PyTorch, resumable to the bit, the same for every arm."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from potstill.errors import GuardStopped
from potstill.models.forward import hidden_rows
from potstill.models.load import compute_dtype, device
from potstill.recipe import LogitKd, Sft, Train
from potstill.records import Progress, Score, Watch
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.text.tokens import Ids
from potstill.train.batch import Row, Whole, collate, passes, steps_of_epoch
from potstill.train.methods import Logged, terms
from potstill.train.teaching import Teach
from potstill.train.trainee import Trainee

_DECAY = 0.2  # of the steps, under the schedule wsd
_OBSERVED = 10  # every so many steps the parts of a soft loss are logged: that costs passes over the logits

Validate = Callable[[PreTrainedModel], dict[str, Score]]
"""Scores on the validation prompts, by metric."""


Write = Callable[[Sequence[Row], int, int], list[Row]]
"""What becomes of the rows of a step (of so many): answers of the student's own in place of the kept ones."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training took: optimizer steps, tokens read, seconds over all restarts."""

    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One arm to train: what it learns from, how, and where its traces go."""

    arm: str
    rows: Sequence[Row]
    choices: Sequence[Ids]
    method: Sft | LogitKd
    teach: Teach | None = None
    write: Write | None = None
    settings: Train
    seed: int
    fingerprint: str
    checkpoints: Checkpoints
    metrics: Metrics
    validate: Validate
    watch: Watch


def fit(model: PreTrainedModel, job: Job) -> Fitted:
    """Train `model` in place, from the newest checkpoint if there is one. Raises GuardStopped on a loss that is not
    finite, before the weights are touched."""
    settings = job.settings
    total = math.ceil(len(job.rows) / settings.batch_size) * settings.epochs
    validate_at = {math.ceil(total * (i + 1) / settings.validations) for i in range(settings.validations)}
    model.to(device())  # pyright: ignore[reportArgumentType]
    trainee = Trainee(model, settings)
    trainee.restore(job.checkpoints, fingerprint=job.fingerprint)
    for said in job.checkpoints.damage:
        job.watch(Progress(stage="train", what=job.arm, done=trainee.step, total=total, note=said))
    job.metrics.rewind(job.arm, trainee.step)
    before, start = trainee.seconds, time.perf_counter()
    saved = start
    for rows in _rows_of_steps(job, trainee.step, total):
        logged = _step(trainee, rows, job=job, rate=settings.learning_rate * schedule(trainee.step, total, settings))
        if trainee.step > total * (1 - settings.average):
            trainee.take_into_average()
        if trainee.step == total:
            trainee.settle()
        if trainee.step in validate_at:
            logged |= {f"validation_{name}": score.value for name, score in job.validate(model).items()}
        job.metrics.append({"arm": job.arm, "step": trainee.step, "tokens": trainee.tokens, **logged})
        note = f"loss {logged['loss']:.3f}"
        job.watch(Progress(stage="train", what=job.arm, done=trainee.step, total=total, note=note))
        trainee.seconds = before + time.perf_counter() - start
        if time.perf_counter() - saved > settings.checkpoint_seconds and trainee.step < total:
            trainee.save(job.checkpoints, fingerprint=job.fingerprint)
            saved = time.perf_counter()
    trainee.release()
    return Fitted(steps=total, tokens=trainee.tokens, seconds=trainee.seconds)


def _rows_of_steps(job: Job, first: int, total: int) -> Iterator[list[Row]]:
    """The examples of the steps from `first` on; what the student writes itself is written when it is asked for."""
    size, order = job.settings.batch_size, list[list[int]]()
    per_epoch = math.ceil(len(job.rows) / size)
    for step in range(first, total):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or not order:
            order = steps_of_epoch(len(job.rows), batch_size=size, seed=job.seed, epoch=epoch)
        rows = [job.rows[i] for i in order[position]]
        yield rows if job.write is None else job.write(rows, step, total)


def schedule(step: int, total: int, settings: Train) -> float:
    """Linear warm-up over the first `warmup` of the steps; then a cosine down to a tenth, or flat and over the last
    fifth linearly down to nothing (warm-up, stable, decay: Hu et al. 2024, MiniCPM)."""
    rise = settings.warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    if settings.schedule == "wsd":
        return min(1.0, (total - step) / max(_DECAY * total, 1))
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1))) / 2


def _step(trainee: Trainee, rows: Sequence[Row], *, job: Job, rate: float) -> Logged:
    """Forward and backward of every pass, one update; what is worth logging of it."""
    model, whole = trainee.model, Whole.of(rows)
    observe = trainee.step % _OBSERVED == 0
    sums: Counter[str] = Counter()
    model.train()
    torch.manual_seed(1_000_003 * job.seed + trainee.step)  # what drops out is the same after a restart
    for part in passes(rows, job.settings.pass_tokens):
        batch = collate(part, job.choices, whole=whole, device=model.device)
        signal = None if job.teach is None else job.teach(part)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=compute_dtype() == torch.bfloat16):
            hidden_RD = hidden_rows(model, batch.documents, batch.at_R)
        if batch.choices is None:  # whole vocabularies: products in half precision where the machine has it
            hidden_RD = hidden_RD.to(compute_dtype())
        loss, logged = terms(job.method, model, hidden_RD, batch, signal=signal, observe=observe)
        value = loss.item()
        if not math.isfinite(value):
            raise GuardStopped(
                f"training of '{job.arm}' stopped at step {trainee.step}: the loss is {value}",
                way_out="lower train.learning_rate; the last checkpoint is kept",
            )
        loss.backward()
        sums.update({"loss": value, **logged})  # pyright: ignore[reportCallIssue, reportArgumentType]
        trainee.tokens += batch.tokens
    norm = trainee.update(rate=rate)
    model.eval()
    trainee.step += 1
    return {"learning_rate": rate, **sums, "gradient_norm": norm}
