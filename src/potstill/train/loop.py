"""The training loop: plain PyTorch, resumable to the bit, the same for every arm and every kind of student."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Generic, TypeVar

import torch
from torch import nn

from potstill.errors import GuardStopped, InputError
from potstill.losses import NotFinite
from potstill.recipe.train import Loop
from potstill.records import Progress, Score
from potstill.train.batch import Learnable, steps_of_epoch
from potstill.train.best import Choice, Chosen, told
from potstill.train.data import Data
from potstill.train.guards import Breach, Rules, decided, look
from potstill.train.methods import Logged
from potstill.train.objective import Objective, Step
from potstill.train.state import TrainState
from potstill.train.stopped import stopped
from potstill.train.traces import Traces
from potstill.train.watching import Gauge, progress
from potstill.train.world import ALONE, Root, World

_DECAY = 0.2  # of the steps, under the schedule wsd
_OBSERVED = 10  # every so many steps the parts of a soft loss are logged: that costs passes over the logits

M = TypeVar("M", bound=nn.Module)
R = TypeVar("R", bound=Learnable)

Validate = Callable[[M], dict[str, Score]]
"""Scores on the validation prompts, by metric."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training took: optimizer steps, tokens read, seconds over all restarts; which weights it `chose`."""

    steps: int
    tokens: int
    seconds: float
    chose: Chosen | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training(Generic[M, R]):
    """One student to train: on what, towards what, how, and where its traces go. Without traces all of it is in memory.
    Raises InputError for settings that need them."""

    data: Data[R]
    objective: Objective[M, R]
    settings: Loop
    seed: int
    validate: Validate[M]
    traces: Traces | None = None
    world: World = ALONE

    def __post_init__(self) -> None:
        if self.traces is None and (self.settings.best or self.settings.report_to):
            raise InputError(
                "'best' goes back to a checkpoint and 'report_to' sends metrics, but this training writes neither",
                way_out="leave them out",
            )

    @property
    def name(self) -> str:
        return "training" if self.traces is None else f"training of '{self.traces.arm}'"

    @property
    def steps(self) -> int:
        return math.ceil(len(self.data.rows) / self.settings.batch_size) * self.settings.epochs


def fit(model: M, training: Training[M, R]) -> Fitted:
    """Train `model` in place, from the newest checkpoint if there is one. Raises GuardStopped, with the batch saved: on
    a loss or a gradient that is not finite, before the weights are touched, and where a guard says so."""
    root = training.world.rooted(model)
    state = TrainState(model, training.settings, training.world, training.data)
    try:
        return _fit(state, root, training)
    finally:
        state.release()


def _fit(state: TrainState[M], root: Root, training: Training[M, R]) -> Fitted:
    settings, world, total = training.settings, training.world, training.steps
    validate_at = {math.ceil(total * (i + 1) / settings.validations) for i in range(settings.validations)}
    rules = training.data.rules(settings.guards)
    traced = None if training.traces is None else _Traced(state, training.traces, total)
    choice, before, start = Choice(settings, state), state.seconds, time.perf_counter()
    for rows in _rows_of_steps(training, state.step):
        rate = settings.learning_rate * schedule(state.step, total, settings) * state.memory.factor
        logged = _step(state, root, rows, training=training, rate=rate)
        breaches = _guarded(state, rows, logged, rules, training)
        if state.step > total * (1 - settings.average):
            state.take_into_average()
        if state.step == total:
            state.settle()
        score = None
        if state.step in validate_at:
            found = root(partial(training.validate, state.model))
            logged |= {f"validation_{name}": score.value for name, score in found.items()}
            score = choice.weigh(found, of=training.name)
        if traced is not None:
            traced.tell(rows, logged, breaches, choice.made(total))
        state.seconds = before + time.perf_counter() - start
        if choice.over(total):
            break
        if traced is not None:
            traced.save(score, world, every=settings.checkpoint_seconds)
    chosen = None if training.traces is None else choice.settle(total, training.traces.checkpoints)
    root.gather()
    return Fitted(steps=state.step, tokens=state.tokens, seconds=state.seconds, chose=chosen)


def schedule(step: int, total: int, settings: Loop) -> float:
    """Linear warm-up over the first `warmup` of the steps; then a cosine down to a tenth, or flat and over the last
    fifth linearly down to nothing (warm-up, stable, decay: Hu et al. 2024, MiniCPM)."""
    rise = settings.warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    if settings.schedule == "wsd":
        return min(1.0, (total - step) / max(_DECAY * total, 1))
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - rise) / max(total - rise, 1))) / 2


class _Traced(Generic[M]):
    """What is left of the steps in the traces. Made before the first step, it goes on from the newest checkpoint."""

    def __init__(self, state: TrainState[M], traces: Traces, total: int) -> None:
        self._state, self._traces, self._total = state, traces, total
        state.restore(traces.checkpoints, fingerprint=traces.fingerprint)
        for said in traces.checkpoints.damage:
            traces.watch(Progress(stage="train", what=traces.arm, done=state.step, total=total, note=said))
        traces.metrics.rewind(traces.arm, state.step)
        self._gauge = Gauge(state.model, state.tokens)
        self._saved = time.perf_counter()

    def tell(
        self, rows: Sequence[Learnable], logged: Logged, breaches: Sequence[Breach], chosen: Chosen | None
    ) -> None:
        """Of the step that was taken, in metrics.jsonl and to whoever watches."""
        state, traces = self._state, self._traces
        row = {"arm": traces.arm, "step": state.step, "tokens": state.tokens, **logged, **told(chosen)}
        traces.metrics.append({**row, **({"breaches": [breach.name for breach in breaches]} if breaches else {})})
        facts = self._gauge.read(state.tokens, rows, logged, steps_left=self._total - state.step)
        says = [breach.says for breach in breaches]
        traces.watch(progress(traces.arm, state.step, self._total, facts, chosen, says=says))

    def save(self, score: float | None, world: World, *, every: float) -> None:
        """A checkpoint of weights with the best `score` so far, and one every so many seconds."""
        due = score is not None or time.perf_counter() - self._saved > every
        if world.told(lambda: due):
            self._state.save(self._traces.checkpoints, fingerprint=self._traces.fingerprint, score=score)
            self._saved = time.perf_counter()


def _rows_of_steps(training: Training[M, R], first: int) -> Iterator[list[R]]:
    """The examples of the steps from `first` on; what the student writes itself is written when it is asked for."""
    data, size, total = training.data, training.settings.batch_size, training.steps
    per_epoch = math.ceil(len(data.rows) / size)

    @lru_cache(2)  # own answers may be written for steps of the next epoch too
    def order(epoch: int) -> list[list[int]]:
        return steps_of_epoch(len(data.rows), batch_size=size, seed=training.seed, epoch=epoch)

    def kept(step: int) -> list[R]:
        epoch, position = divmod(step, per_epoch)
        return [data.rows[i] for i in order(epoch)[position]]

    for step in range(first, total):
        yield data.of_step(kept, step, total)


def _step(state: TrainState[M], root: Root, rows: Sequence[R], *, training: Training[M, R], rate: float) -> Logged:
    """Forward and backward of every pass, one update; what is worth logging of it."""
    model, world, objective = state.model, training.world, training.objective
    step = Step(rows, training.settings, observe=state.step % _OBSERVED == 0)
    sums: Counter[str] = Counter()
    model.train()
    _seed(model, 1_000_003 * training.seed + state.step + (world.rank << 48))
    for part in objective.passes(step, world):
        ready = objective.prepare(model, part, step)
        try:
            loss, logged = root(ready.loss)
        except NotFinite as error:
            why = f"the loss is not finite ({error})"
            raise _stopped(why, rows, {"loss": math.nan}, training, step=state.step + 1) from error
        value = loss.item()
        if not math.isfinite(value):
            raise _stopped(f"the loss is {value}", rows, {"loss": value}, training, step=state.step + 1)
        loss.backward()
        sums.update({"loss": value, **logged, "tokens": ready.tokens})  # pyright: ignore[reportCallIssue, reportArgumentType]
    norm = state.update(rate=rate)
    model.eval()
    state.step += 1
    found = dict(world.added(sums))
    state.tokens += int(found.pop("tokens"))
    numbers = {"learning_rate": rate, **found, "gradient_norm": norm}
    if not math.isfinite(norm):
        raise _stopped(f"the gradient's norm is {norm}", rows, numbers, training, step=state.step)
    return numbers


def _seed(model: nn.Module, seed: int) -> None:
    """What drops out is the same after a restart, and another thing in every process."""
    if next(model.parameters()).is_cpu:  # the rest of torch would note a traceback at every step, in case of a GPU
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _guarded(
    state: TrainState[M], rows: Sequence[R], logged: Logged, rules: Rules, training: Training[M, R]
) -> list[Breach]:
    """What the guards say of a step that was taken; what they measured is put with what is logged. Raises GuardStopped
    where the recipe wants that."""
    traces, warming_up = training.traces, state.step <= training.settings.warmup * training.steps
    seen = look(state.memory, training.data.own(rows), logged, rules, warming_up=warming_up)
    state.memory, stop = decided(seen.memory, seen.breaches)
    logged |= seen.measured
    if stop is not None:
        if traces is not None:
            traces.metrics.append({"arm": traces.arm, "step": state.step, "tokens": state.tokens, **logged})
        raise _stopped(stop.says, rows, logged, training, step=state.step)
    return seen.breaches


def _stopped(why: str, rows: Sequence[R], numbers: Logged, training: Training[M, R], *, step: int) -> GuardStopped:
    """Steps are counted from 1 here, as in metrics.jsonl."""
    traces = training.traces
    file = None if traces is None else traces.metrics.folder / "stopped" / traces.arm / f"step-{step:06d}.json"
    what = f"{training.name} stopped at step {step}"
    examples = [training.objective.describe(row) for row in rows]
    return stopped(what, why, examples, to=file, numbers={"step": step, **numbers})
