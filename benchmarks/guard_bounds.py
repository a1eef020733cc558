"""Where the guards' bounds lie between runs that are well and runs that are not: on-policy runs of
`on_policy_experiment.py`'s tasks, whole, with their guards asked afterwards.

    make bench-guards       rewrites the tables of docs/results/guards.md
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from on_policy_experiment import REVERSE, TASKS, start_of
from on_policy_tasks import Plan, Task, learn, lessons
from pages import replace_table
from torch import nn
from transformers import PreTrainedModel

from potstill.engines.slots import Rollout
from potstill.errors import GuardStopped
from potstill.recipe.guards import LossGuard, RolloutGuards
from potstill.recipe.on_policy import OnPolicy
from potstill.store.metrics import Metrics
from potstill.text.tokens import Ids
from potstill.train.batch import Row
from potstill.train.guards import Memory, bounds, judge_loss, judge_own
from potstill.train.rollout_buffer import RolloutBuffer, WritesHere
from potstill.train.teaching import LiveTeacher

VALUES = (
    "eos_rate", "rollout_length", "repetition", "student_entropy", "teacher_entropy", "support_overlap",
    "log_probability_gap",
)  # fmt: skip
ROOM = 4
"""Times the longest right answer that an own one may take: lengths have somewhere to run to."""

Step = Mapping[str, float]


def itself(model: PreTrainedModel, task: Task) -> PreTrainedModel:
    return model


def never_ending(model: PreTrainedModel, task: Task) -> PreTrainedModel:
    """To which the end of an answer is next to impossible."""
    made, head = copy.deepcopy(model), model.get_output_embeddings()
    wide: Any = nn.Linear(head.weight.shape[1], len(head.weight), device=head.weight.device, dtype=head.weight.dtype)
    wide.weight.data.copy_(head.weight)
    wide.bias.data.zero_()
    wide.bias.data[task.end] = -30.0
    made.set_output_embeddings(wide)
    return made.requires_grad_(False)


def as_it_is(prefix: Ids) -> Ids:
    return prefix


def cut(prefix: Ids) -> Ids:
    """Without the last token of the prompt, which says that the answer comes now."""
    return prefix[:-1]


class Stale(WritesHere):
    """Writes with the weights of the start for ever."""

    def __init__(self, model: PreTrainedModel, **more: Any) -> None:
        super().__init__(copy.deepcopy(model), **more)


class Half(WritesHere):
    """Writes with the newest weights rounded to bf16, as where the machine computes in it."""

    def __init__(self, model: PreTrainedModel, **more: Any) -> None:
        self._newest: PreTrainedModel = model
        self._rounded: Any = copy.deepcopy(model).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
        super().__init__(self._rounded, **more)

    @torch.no_grad()
    def __call__(self, rows: Sequence[Row], **asked: Any) -> list[Rollout]:
        for mine, newest in zip(self._rounded.parameters(), self._newest.parameters(), strict=True):
            mine.copy_(newest)
        return super().__call__(rows, **asked)


@dataclass(frozen=True, slots=True)
class Case:
    """What is done to a run. `times` its learning rate."""

    name: str
    well: bool = False
    times: float = 1.0
    teacher: Callable[[PreTrainedModel, Task], PreTrainedModel] = itself
    prompt: Callable[[Ids], Ids] = as_it_is
    writer: type[WritesHere] = WritesHere


CASES = (
    Case("well", well=True),
    Case("well, bf16 writer", well=True, writer=Half),
    Case("rate x 30", times=30),
    Case("rate x 100", times=100),
    Case("wrong template", prompt=cut),
    Case("teacher never ends", teacher=never_ending),
    Case("writer never updated", writer=Stale),
)


def steps_of(case: Case, start: PreTrainedModel, task: Task, plan: Plan, seed: int) -> list[Step]:
    """What metrics.jsonl has of an on-policy run that no guard may stop."""
    student, rows = copy.deepcopy(start), task.questions(seed)
    rows = [replace(row, teacher_prefix=case.prompt(row.teacher_prefix)) for row in rows]
    own = OnPolicy(warm_up=0.0, max_tokens=ROOM * task.most, slots=plan.batch, guards=None)
    how = lessons(
        REVERSE, epochs=plan.epochs, batch=plan.batch, rate=case.times * plan.rate, on_policy=own, guards=None
    )
    longest = max(len(row.prefix) for row in rows)
    writes = case.writer(student, slots=own.slots, capacity_tokens=longest + own.max_tokens, end_of_turn=task.end)
    answers = RolloutBuffer(own, writes, seed=seed)
    teach = LiveTeacher(case.teacher(task.teacher, task), [row.teacher_prefix for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        try:
            learn(student, rows, how, seed=seed, teach=teach, own=answers, folder=Path(folder))
        except GuardStopped as stop:  # what is not finite always stops
            print(f"{case.name}, seed {seed}: {stop}", file=sys.stderr)
        return Metrics(Path(folder) / "metrics.jsonl").rows("student")


@dataclass(frozen=True, slots=True)
class Judged:
    """Of a run: the least and the most that every running mean came to once it had settled (`loss`: of the loss itself,
    over its running median), the bounds that held in the end, and the step at which each guard first broke."""

    span: Mapping[str, tuple[float, float]]
    bound: Mapping[str, tuple[float, float]]
    broke: Mapping[str, int]


def judged(steps: Sequence[Step], kept_length: float) -> Judged:
    guards, memory = RolloutGuards(), Memory()
    span, broke = dict[str, tuple[float, float]](), dict[str, int]()
    for step in steps:
        measured = {name: step[name] for name in VALUES if name in step}
        known = sorted(map(abs, memory.losses))
        memory, breaches = judge_loss(memory, step["loss"], LossGuard(), warming_up=step["step"] <= 0.1 * len(steps))
        if len(known) >= 5:
            span["loss"] = _wider(span.get("loss"), step["loss"] / max(0.1, known[len(known) // 2]))
        memory, more = judge_own(memory, measured, guards, kept_length=kept_length)
        for name, track in memory.tracks.items():
            if track.steps > 5:
                span[name] = _wider(span.get(name), track.level)
        for breach in (*breaches, *more):
            broke.setdefault(breach.name, int(step["step"]))
    return Judged(span, bounds(guards, memory.tracks, kept_length=kept_length), broke)


def _wider(span: tuple[float, float] | None, value: float) -> tuple[float, float]:
    low, high = span or (math.inf, -math.inf)
    return min(low, value), max(high, value)


def table(found: Mapping[str, Sequence[Judged]]) -> str:
    """A column a case, a row a value: least to most over its runs; in brackets the first step at which it broke."""
    lines = [
        f"| running mean, least to most | {' | '.join(f'{name} ({len(runs)})' for name, runs in found.items())} |",
        f"|---|{'---:|' * len(found)}",
    ]
    for name in (*VALUES, "loss"):
        cells = list[str]()
        for runs in found.values():
            spans = [run.span[name] for run in runs if name in run.span]
            if not spans:
                cells.append("")
                continue
            said = f"{min(low for low, _ in spans):.3g} to {max(high for _, high in spans):.3g}"
            steps = [run.broke[name] for run in runs if name in run.broke]
            cells.append(f"**{said}** (step {min(steps)})" if steps else said)
        label = "loss over its running median" if name == "loss" else f"`{name}`"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=4, help="runs of a case that is well; the others have two")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=[c.name for c in CASES])
    parser.add_argument("--teacher", type=Path, help="a file of its weights, read where it is there, else written")
    parser.add_argument("--write", type=Path, help="a page whose table of this task is replaced")
    given = parser.parse_args()
    plan, make = TASKS[given.task]
    task = make(plan, given.teacher)
    found: dict[str, list[Judged]] = {}
    for seed in range(given.seeds):
        start = start_of(task, plan, seed)
        kept = sum(len(row.target) for row in task.questions(seed)) / len(task.questions(seed))
        for case in CASES:
            if case.name in given.cases and (case.well or seed < 2):
                one = judged(steps_of(case, start, task, plan, seed), kept)
                found.setdefault(case.name, []).append(one)
                print(f"seed {seed}, {case.name}: {one}", file=sys.stderr, flush=True)
    said = table(found)
    print(said)
    if given.write:
        replace_table(given.write, given.task, said)


if __name__ == "__main__":
    main()
