"""What is gained when a student learns from its own answers: on-policy distillation beside three ways without.

A student is fine-tuned on right answers; from there, with as many updates on the same prompts, it goes on with that, or
with the teacher's soft targets on the right answers, or with its soft targets on what the student writes itself.

    make bench-on-policy-experiment       both tasks, rewrites the tables of docs/results/on_policy_experiment.md

Dimension key: S seeds, N held-out prompts, B resamples, V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from on_policy_tasks import COLUMNS, ORDER_MAILS, Plan, Task, columns_task, half, learn, lessons, orders_task
from pages import computed_in, replace_table
from transformers import PreTrainedModel

from potstill.engines.row_logits import row_logits
from potstill.engines.sampling import Sampling
from potstill.engines.slots import Rollouts
from potstill.evaluate.metrics import interval, resamples
from potstill.losses import divergence
from potstill.models.documents import Documents
from potstill.models.forward import hidden_rows
from potstill.recipe.methods import LogitKd, Sft
from potstill.recipe.on_policy import OnPolicy
from potstill.records import Score
from potstill.train.batch import Row
from potstill.train.rollout_buffer import RolloutBuffer
from potstill.train.teaching import LiveTeacher

Array = NDArray[np.float64]

_GOES = 10
"""How often a start may go on learning."""

START, SFT, OFF, OFF_REVERSE, ON = "start", "SFT continued", "off-policy KD", "off-policy KD, reverse KL", "on-policy"
REVERSE = LogitKd(kind="logit_kd", divergence="reverse_kl", alpha=0.0)
METHODS: dict[str, Sft | LogitKd] = {
    SFT: Sft(kind="sft"),
    OFF: LogitKd(kind="logit_kd", alpha=0.0),
    OFF_REVERSE: REVERSE,  # what is on-policy but for who writes
    ON: REVERSE,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A student on every held-out prompt: whether its greedy answer is right, and of one that it drew, KL(student ||
    teacher) over its tokens, their number, and whether it ended by itself."""

    right_N: Array
    nats_N: Array
    tokens_N: Array
    ended_N: Array


@dataclass(frozen=True, slots=True)
class Point:
    """A validation during training: CPU seconds trained so far, and which greedy answers are right."""

    seconds: float
    right_N: Array


@dataclass(frozen=True, slots=True)
class Trained:
    """One arm of one seed; the start has no curve."""

    seen: Seen
    curve: Sequence[Point] = ()

    def right_within(self, seconds: float, start: Trained) -> Array:
        """At the last validation within so many seconds, or at the start."""
        within = [point.right_N for point in self.curve if point.seconds <= seconds]
        return within[-1] if within else start.seen.right_N


Seed = Mapping[str, Trained]
"""By arm."""


class Curve:
    """Greedy scores while a student learns. The clock counts the CPU time of all threads, which work beside this does
    not lengthen much, and stands still meanwhile."""

    def __init__(self, task: Task) -> None:
        self.points: list[Point] = []
        self._task, self._start = task, time.process_time()

    def __call__(self, student: PreTrainedModel) -> dict[str, Score]:
        begin = time.process_time()
        right_N = greedy(half(student), self._task)
        self.points.append(Point(begin - self._start, right_N))
        self._start += time.process_time() - begin
        return {"right": Score(value=float(right_N.mean()), n=len(right_N))}


def one_seed(task: Task, plan: Plan, seed: int, arms: Sequence[str] = tuple(METHODS)) -> Seed:
    """The common start and every arm. The seed draws the prompts, their order and the answers that are drawn."""
    begun = start_of(task, plan, seed)
    found = {START: Trained(seen(half(begun), task, seed, right_N=greedy(half(begun), task)))}
    for arm in arms:
        student, curve = copy.deepcopy(begun), Curve(task)
        take(arm, student, task, plan, seed, validate=curve)
        last = curve.points[-1].right_N
        found[arm] = Trained(seen(half(student), task, seed, right_N=last), curve.points)
        print(f"seed {seed}, {arm}: {found[arm].seen.right_N.mean():.2f} right", file=sys.stderr, flush=True)
    return found


def start_of(task: Task, plan: Plan, seed: int) -> PreTrainedModel:
    """Fine-tuned on the seed's prompts and their right answers, for longer where it is not yet right often enough."""
    student, rows, epochs = task.student(plan.layers), task.questions(seed), plan.start_epochs
    for go in range(_GOES):
        how = lessons(METHODS[SFT], epochs=epochs, batch=plan.batch, rate=plan.start_rate)
        learn(student, rows, how, seed=seed + 1000 * go)
        right = greedy(half(student), replace(task, exam=task.trial)).mean() if plan.start_right else 1.0
        print(f"seed {seed}, start, go {go}: {right:.2f} of the trial right", file=sys.stderr, flush=True)
        if right >= plan.start_right:
            break
        epochs = 1
    return student


def take(  # noqa: PLR0913
    arm: str,
    student: PreTrainedModel,
    task: Task,
    plan: Plan,
    seed: int,
    *,
    validate: Callable[[PreTrainedModel], dict[str, Score]] = lambda _: {},
    folder: Path | None = None,
) -> None:
    """Train a student that has begun, as `arm` does it, on the same prompts."""
    rows = task.questions(seed)
    own = OnPolicy(warm_up=0.0, max_tokens=task.most, slots=plan.batch) if arm == ON else None
    how = lessons(
        METHODS[arm], epochs=plan.epochs, batch=plan.batch, rate=plan.rate, validations=plan.validations, on_policy=own
    )
    longest = max(len(row.prefix) for row in rows)
    learn(
        student,
        rows,
        how,
        seed=seed + 1_000_000,  # another order than at first
        teach=None if arm == SFT else LiveTeacher(task.teacher, [row.teacher_prefix for row in rows]),
        own=own and RolloutBuffer.here(student, own, end_of_turn=task.end, longest_prefix=longest, seed=seed),
        validate=validate,
        folder=folder,
    )


def answers(model: PreTrainedModel, task: Task, sampling: Sampling) -> list[Row]:
    """The held-out prompts with what the model says."""
    longest = max(len(row.prefix) for row in task.exam)
    rollouts = Rollouts(model, slots=50, capacity_tokens=longest + task.most, end_ids=[task.end])
    said = rollouts.roll_out([row.prefix for row in task.exam], sampling=sampling, max_new_tokens=task.most)
    return [replace(row, target=one.ids) for row, one in zip(task.exam, said, strict=True)]


def greedy(model: PreTrainedModel, task: Task) -> Array:
    """1 where the answer is the right one to the last token, its end included."""
    said = answers(model, task, Sampling(temperature=0))
    return np.array([one.target == row.target for one, row in zip(said, task.exam, strict=True)], dtype=np.float64)


@torch.no_grad()
def seen(student: PreTrainedModel, task: Task, seed: int, *, right_N: Array) -> Seen:
    drawn = answers(student, task, Sampling(seed=seed))
    teacher, vocabulary = LiveTeacher(task.teacher, [row.prefix for row in drawn]), student.config.vocab_size
    nats = list[float]()
    for begin in range(0, len(drawn), 10):  # rows at once: their logits have the vocabulary's width
        some = drawn[begin : begin + 10]
        documents = Documents.of([(*row.prefix, *row.target[:-1]) for row in some], student.device)
        at = [s + len(r.prefix) - 1 + i for r, s in zip(some, documents.start_S, strict=True) for i in range(r.scored)]
        logits_NV = row_logits(student, hidden_rows(student, documents, torch.tensor(at, device=student.device)))
        kl_N = divergence(
            "reverse_kl",
            student_logp_NV=logits_NV.log_softmax(-1),
            teacher_logp_NV=teacher.logits(some, vocabulary).log_softmax(-1),
        )
        nats += [part.sum().item() for part in kl_N.split([row.scored for row in some])]
    tokens = [len(row.target) for row in drawn]
    ended = [row.target[-1] == task.end for row in drawn]
    return Seen(right_N, *(np.array(x, dtype=np.float64) for x in (nats, tokens, ended)))


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the middle 95 % of its resamples, or of the resampled difference of two."""

    value: float
    low: float
    high: float


def ratio(top_SN: Array, bottom_SN: Array, *, less: tuple[Array, Array] | None = None, count: int = 2000) -> Interval:
    """sum(top) / sum(bottom), less the same of another arm: seeds and prompts are both drawn again, independently of
    each other, since every seed answers the same prompts."""
    S, N = top_SN.shape
    seed_BS1 = resamples(S, count=count, seed=0)[:, :, None]
    prompt_B1N = resamples(N, count=count, seed=1)[:, None, :]

    def of(top_SN: Array, bottom_SN: Array) -> tuple[float, Array]:
        drawn_B = top_SN[seed_BS1, prompt_B1N].sum((1, 2)) / bottom_SN[seed_BS1, prompt_B1N].sum((1, 2))
        return float(top_SN.sum() / bottom_SN.sum()), drawn_B

    value, drawn_B = of(top_SN, bottom_SN)
    if less is not None:
        other, other_B = of(*less)
        value, drawn_B = value - other, drawn_B - other_B
    return Interval(value, *interval(drawn_B))


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm over all seeds: what `ratio` takes for its score and for its KL, (S, N) each."""

    right: tuple[Array, Array]
    right_in_time: tuple[Array, Array]
    nats: tuple[Array, Array]
    ended: float
    length: float
    seconds: float


def arms_of(found: Sequence[Seed]) -> dict[str, Arm]:
    """`right_in_time`: as each stood when the fastest arm of its seed had taken all its updates."""
    made: dict[str, Arm] = {}
    for arm in found[0]:
        each = [seed[arm] for seed in found]
        tokens_SN = np.stack([one.seen.tokens_N for one in each])
        right_SN = np.stack([one.seen.right_N for one in each])
        in_time_SN = np.stack([seed[arm].right_within(fastest(seed), seed[START]) for seed in found])
        made[arm] = Arm(
            right=(right_SN, np.ones_like(right_SN)),
            right_in_time=(in_time_SN, np.ones_like(right_SN)),
            nats=(np.stack([one.seen.nats_N for one in each]), tokens_SN),
            ended=float(np.mean([one.seen.ended_N for one in each])),
            length=float(tokens_SN.mean()),
            seconds=float(np.mean([one.curve[-1].seconds for one in each])) if each[0].curve else 0.0,
        )
    return made


def fastest(seed: Seed) -> float:
    return min(one.curve[-1].seconds for one in seed.values() if one.curve)


def table(task: Task, plan: Plan, found: Sequence[Seed]) -> str:
    arms, updates = arms_of(found), -(-plan.prompts // plan.batch)
    lines = [
        f"| {len(found)} seeds | right, % | right in equal time, % | KL on own text, nats/token | ended | tokens "
        "| CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]

    def shown(one: Interval, scale: float, form: str) -> str:
        return f"{one.value * scale:{form}} ({one.low * scale:{form}} to {one.high * scale:{form}})"

    for name, arm in arms.items():
        right, in_time = (shown(ratio(*value), 100, ".1f") for value in (arm.right, arm.right_in_time))
        kl = shown(ratio(*arm.nats), 1, ".4f")
        rest = f"{arm.ended:.1%} | {arm.length:.1f} | {arm.seconds:.1f} |"
        lines.append(f"| {name} | {right} | {in_time} | {kl} | {rest}")
    lines += [
        "",
        "| on-policy less | right, points | right in equal time, points | KL, nats per token |",
        "|---|---:|---:|---:|",
    ]
    for name, arm in arms.items():
        if name != ON:
            right = shown(ratio(*arms[ON].right, less=arm.right), 100, "+.1f")
            in_time = shown(ratio(*arms[ON].right_in_time, less=arm.right_in_time), 100, "+.1f")
            lines.append(f"| {name} | {right} | {in_time} | {shown(ratio(*arms[ON].nats, less=arm.nats), 1, '+.4f')} |")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    until = f", and {updates} more at a time until {plan.start_right:.0%} of the trial are right"
    said = (
        f"The teacher is right on {greedy(task.teacher, task).mean():.1%} of the {plan.exam} held-out prompts (taught "
        f"in {task.teacher_seconds:.0f} CPU s). A seed: {plan.prompts} prompts, {updates * plan.start_epochs} updates "
        f"to the start at a rate of {plan.start_rate:g}{until if plan.start_right else ''}; {updates * plan.epochs} in "
        f"every arm at {plan.rate:g}, {plan.batch} answers each. Threads: {torch.get_num_threads()}, {computed_in()}, "
        f"Python {platform.python_version()}, {libraries}."
    )
    return "\n".join([*lines, "", said])


TASKS: dict[str, tuple[Plan, Callable[[Plan, Path | None], Task]]] = {
    "columns": (COLUMNS, columns_task),
    "orders": (ORDER_MAILS, orders_task),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=100, help="the settings were chosen on seeds below 100")
    for name in Plan.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help="in place of the plan's")
    parser.add_argument("--teacher", type=Path, help="a file of its weights, read where it is there, else written")
    parser.add_argument("--write", type=Path, help="a page whose table of this task is replaced")
    given = parser.parse_args()
    plan, make = TASKS[given.task]
    plan = replace(
        plan, **{n: type(getattr(plan, n))(v) for n in Plan.__dataclass_fields__ if (v := getattr(given, n))}
    )
    task = make(plan, given.teacher)
    found = [one_seed(task, plan, given.first_seed + i) for i in range(given.seeds)]
    said = table(task, plan, found)
    print(said)
    if given.write:
        replace_table(given.write, given.task, said)


if __name__ == "__main__":
    main()
