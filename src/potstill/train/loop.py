"""The training loop: plain PyTorch, resumable to the bit, the same for every arm."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.errors import GuardStopped
from potstill.losses import NotFinite
from potstill.models.forward import hidden_rows
from potstill.models.load import compute_dtype
from potstill.recipe.guards import RolloutGuards
from potstill.recipe.methods import Method
from potstill.recipe.train import Loop
from potstill.records import Progress, Score, Watch
from potstill.signals import Signal
from potstill.store.checkpoints import Checkpoints
from potstill.store.metrics import Metrics
from potstill.text.tokens import Ids
from potstill.train.batch import Batch, Row, Whole, collate, steps_of_epoch
from potstill.train.best import Choice, Chosen, told
from potstill.train.guards import Breach, Rules, decided, look
from potstill.train.methods import Logged, terms
from potstill.train.own_answers import OwnAnswers
from potstill.train.stopped import Spell, stopped
from potstill.train.teaching import Teach
from potstill.train.trainee import Trainee
from potstill.train.watching import Gauge, progress
from potstill.train.world import ALONE, Root, World

_DECAY = 0.2  # of the steps, under the schedule wsd
_OBSERVED = 10  # every so many steps the parts of a soft loss are logged: that costs passes over the logits

Validate = Callable[[PreTrainedModel], dict[str, Score]]
"""Scores on the validation prompts, by metric."""


Judge = Callable[[Sequence[Row]], list[Row]]
"""Says of the student's own answers among the rows of a step what each is worth."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training took: optimizer steps, tokens read, seconds over all restarts; which weights it `chose`."""

    steps: int
    tokens: int
    seconds: float
    chose: Chosen | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One arm to train: what it learns from, how, and where its traces go."""

    arm: str
    rows: Sequence[Row]
    choices: Sequence[Ids]
    method: Method
    teach: Teach | None = None
    own: OwnAnswers | None = None
    judge: Judge | None = None
    own_guards: RolloutGuards | None = None
    settings: Loop
    seed: int
    fingerprint: str
    checkpoints: Checkpoints
    metrics: Metrics
    validate: Validate
    watch: Watch
    spell: Spell | None = None
    world: World = ALONE


def fit(model: PreTrainedModel, job: Job) -> Fitted:
    """Train `model` in place, from the newest checkpoint if there is one. Raises GuardStopped, with the batch saved: on
    a loss or a gradient that is not finite, before the weights are touched, and where a guard says so."""
    settings, world = job.settings, job.world
    total = math.ceil(len(job.rows) / settings.batch_size) * settings.epochs
    validate_at = {math.ceil(total * (i + 1) / settings.validations) for i in range(settings.validations)}
    root = world.rooted(model)
    rules = _rules(job)
    trainee = Trainee(model, settings, world, own=job.own)
    trainee.restore(job.checkpoints, fingerprint=job.fingerprint)
    for said in job.checkpoints.damage:
        job.watch(Progress(stage="train", what=job.arm, done=trainee.step, total=total, note=said))
    job.metrics.rewind(job.arm, trainee.step)
    choice, gauge = Choice(settings, trainee), Gauge(model, trainee.tokens)
    before, start = trainee.seconds, time.perf_counter()
    saved = start
    for rows in _rows_of_steps(job, trainee.step, total):
        rate = settings.learning_rate * schedule(trainee.step, total, settings) * trainee.memory.factor
        logged = _step(trainee, root, rows, job=job, rate=rate)
        breaches = _guarded(trainee, rows, logged, rules, job=job, total=total)
        if trainee.step > total * (1 - settings.average):
            trainee.take_into_average()
        if trainee.step == total:
            trainee.settle()
        score = None
        if trainee.step in validate_at:
            found = root(partial(job.validate, model))
            logged |= {f"validation_{name}": score.value for name, score in found.items()}
            score = choice.weigh(found, arm=job.arm)
        chosen = choice.made(total)
        row = {"arm": job.arm, "step": trainee.step, "tokens": trainee.tokens, **logged, **told(chosen)}
        job.metrics.append({**row, **({"breaches": [breach.name for breach in breaches]} if breaches else {})})
        facts = gauge.read(trainee.tokens, rows, logged, steps_left=total - trainee.step)
        job.watch(progress(job.arm, trainee.step, total, facts, chosen, says=[breach.says for breach in breaches]))
        trainee.seconds = before + time.perf_counter() - start
        if choice.over(total):
            break
        due = score is not None or time.perf_counter() - saved > settings.checkpoint_seconds
        if world.told(lambda due=due: due):
            trainee.save(job.checkpoints, fingerprint=job.fingerprint, score=score)
            saved = time.perf_counter()
    chosen = choice.settle(total, job.checkpoints)
    root.gather()
    trainee.release()
    return Fitted(steps=trainee.step, tokens=trainee.tokens, seconds=trainee.seconds, chose=chosen)


def _rows_of_steps(job: Job, first: int, total: int) -> Iterator[list[Row]]:
    """The examples of the steps from `first` on; what the student writes itself is written when it is asked for."""
    size = job.settings.batch_size
    per_epoch = math.ceil(len(job.rows) / size)

    @lru_cache(2)  # own answers may be written for steps of the next epoch too
    def order(epoch: int) -> list[list[int]]:
        return steps_of_epoch(len(job.rows), batch_size=size, seed=job.seed, epoch=epoch)

    def kept(step: int) -> list[Row]:
        epoch, position = divmod(step, per_epoch)
        return [job.rows[i] for i in order(epoch)[position]]

    for step in range(first, total):
        rows = kept(step) if job.own is None else job.own(kept, step, total)
        yield rows if job.judge is None else job.judge(rows)


def schedule(step: int, total: int, settings: Loop) -> float:
    """Linear warm-up over the first `warmup` of the steps; then a cosine down to a tenth, or flat and over the last
    fifth linearly down to nothing (warm-up, stable, decay: Hu et al. 2024, MiniCPM)."""
    rise = settings.warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    if settings.schedule == "wsd":
        return min(1.0, (total - step) / max(_DECAY * total, 1))
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1))) / 2


def _step(trainee: Trainee, root: Root, rows: Sequence[Row], *, job: Job, rate: float) -> Logged:
    """Forward and backward of every pass, one update; what is worth logging of it."""
    model, world, whole = trainee.model, job.world, Whole.of(rows)
    observe = trainee.step % _OBSERVED == 0 or any(row.own for row in rows)
    sums: Counter[str] = Counter()
    model.train()
    # What drops out is the same after a restart, and another thing in every process.
    torch.manual_seed(1_000_003 * job.seed + trainee.step + (world.rank << 48))
    for part in world.share(rows, job.settings.pass_tokens):
        batch = collate(part, job.choices, whole=whole, device=model.device)
        signal = None if job.teach is None else job.teach(part)
        try:
            loss, logged = root(partial(_terms, job, model, batch, signal, observe=observe))
        except NotFinite as error:
            why = f"the loss is not finite ({error})"
            raise _stopped(why, rows, {"loss": math.nan}, job=job, step=trainee.step + 1) from error
        value = loss.item()
        if not math.isfinite(value):
            raise _stopped(f"the loss is {value}", rows, {"loss": value}, job=job, step=trainee.step + 1)
        loss.backward()
        read = batch.tokens if any(row.weight for row in part) else 0  # a pass without weight only keeps step
        sums.update({"loss": value, **logged, "tokens": read})  # pyright: ignore[reportCallIssue, reportArgumentType]
    norm = trainee.update(rate=rate)
    model.eval()
    trainee.step += 1
    found = dict(world.added(sums))
    trainee.tokens += int(found.pop("tokens"))
    numbers = {"learning_rate": rate, **found, "gradient_norm": norm}
    if not math.isfinite(norm):
        raise _stopped(f"the gradient's norm is {norm}", rows, numbers, job=job, step=trainee.step)
    return numbers


def _terms(
    job: Job, model: PreTrainedModel, batch: Batch, signal: Signal | None, *, observe: bool
) -> tuple[Tensor, Logged]:
    """A pass's loss, and what is worth logging of it."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=compute_dtype() == torch.bfloat16):
        again = job.settings.gradient_checkpointing
        hidden_RD = hidden_rows(model, batch.documents, batch.at_R, gradient_checkpointing=again)
    if batch.choices is None:  # whole vocabularies: products in half precision where the machine has it
        hidden_RD = hidden_RD.to(compute_dtype())
    return terms(job.method, model, hidden_RD, batch, signal=signal, observe=observe)


def _rules(job: Job) -> Rules:
    kept_length = sum(len(row.target) for row in job.rows) / len(job.rows)
    return Rules(loss=job.settings.guards, own=job.own_guards, kept_length=kept_length)


def _guarded(
    trainee: Trainee, rows: Sequence[Row], logged: Logged, rules: Rules, *, job: Job, total: int
) -> list[Breach]:
    """What the guards say of a step that was taken; what they measured is put with what is logged. Raises GuardStopped
    where the recipe wants that."""
    warming_up = trainee.step <= job.settings.warmup * total
    seen = look(trainee.memory, [row for row in rows if row.own], logged, rules, warming_up=warming_up)
    trainee.memory, stop = decided(seen.memory, seen.breaches)
    logged |= seen.measured
    if stop is not None:
        job.metrics.append({"arm": job.arm, "step": trainee.step, "tokens": trainee.tokens, **logged})
        raise _stopped(stop.says, rows, logged, job=job, step=trainee.step)
    return seen.breaches


def _stopped(why: str, rows: Sequence[Row], numbers: Logged, *, job: Job, step: int) -> GuardStopped:
    """Steps are counted from 1 here, as in metrics.jsonl."""
    file = job.metrics.folder / "stopped" / job.arm / f"step-{step:06d}.json"
    what = f"training of '{job.arm}' stopped at step {step}"
    return stopped(what, why, rows, to=file, numbers={"step": step, **numbers}, spell=job.spell)
