"""Guards: each breaks on what it is there for, none on a healthy run, and a resumed run decides as an unbroken one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_on_policy import recipe_on_policy
from transformers import AutoModelForCausalLM

from potstill.cli import execute
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.guards import LossGuard, RolloutGuards
from potstill.recipe.train import TrainSettings
from potstill.store.metrics import Metrics
from potstill.train.batch import Own, Row
from potstill.train.guards import Breach, Memory, Rules, Track, decided, look, loop
from potstill.train.state import TrainState

KEPT = 20.0
HEALTHY = {"student_entropy": 0.8, "teacher_entropy": 1.0, "support_overlap": 0.95, "log_probability_gap": 0.01}


def answer(ids: Sequence[int], *, ends: bool = True) -> Row:
    zeros = (0.0,) * len(ids)
    return Row(prefix=(1,), target=tuple(ids), own=Own(prompt=0, cut_off=not ends, logp=zeros))


def answers(length: int = 20, *, ends: bool = True) -> list[Row]:
    return [answer(range(i, i + length), ends=ends) for i in range(8)]


def judged(steps: Iterator[tuple[list[Row], dict[str, float]]], **guards: Any) -> list[tuple[int, Breach]]:
    """The breaches of a run, each with its step; memory goes through JSON between any two steps."""
    rules = Rules(loss=LossGuard(), own=RolloutGuards(**guards), kept_length=KEPT)
    memory, found = Memory(), list[tuple[int, Breach]]()
    for step, (rollouts, values) in enumerate(steps):
        logged = {"loss": 1.0, "own_share": 0.5, **{name: 0.5 * value for name, value in values.items()}}
        seen = look(memory, rollouts, logged, rules, warming_up=False)
        memory = Memory.from_dict(json.loads(json.dumps(seen.memory.as_dict())))
        found += [(step, breach) for breach in seen.breaches]
    return found


def healthy(steps: int) -> Iterator[tuple[list[Row], dict[str, float]]]:
    """Answers begin long and cut off, as of a student that has not learnt to stop, and come to the kept length."""
    for step in range(steps):
        yield answers(max(20, 60 - 2 * step), ends=step > 5), HEALTHY


BROKEN: dict[str, tuple[list[Row], dict[str, float], str]] = {
    "eos_rate": (answers(ends=False), {}, "that end by themselves is 0"),
    "rollout_length": (answers(1000), {}, "mean length of its own answers"),
    "repetition": ([answer([1, 2, 3, *[4, 5] * 30], ends=False)] * 8, {}, "in a loop that an answer ends in is 0"),
    "student_entropy": (answers(), {"student_entropy": 0.01}, "its entropy on its own text"),
    "support_overlap": (answers(), {"support_overlap": 0.1}, "likely ones to the teacher is 0"),
    "log_probability_gap": (answers(), {"log_probability_gap": 0.5}, "the gap between writer and trainer"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_each_guard_sees_what_it_is_there_for_and_nothing_before(name: str) -> None:
    rollouts, values, says = BROKEN[name]

    def steps(broken: int) -> Iterator[tuple[list[Row], dict[str, float]]]:
        yield from healthy(40)
        for _ in range(broken):
            yield rollouts, {**HEALTHY, **values}

    step, breach = next((s, b) for s, b in judged(steps(40)) if b.name == name)
    assert 44 <= step < 70 and breach.action == "stop"  # not before the fifth step in a row
    assert says in breach.says and f"({name}, a running mean)" in breach.says
    others = {other: None for other in BROKEN if other != name}
    assert judged(steps(0)) == [] and judged(steps(2)) == []
    assert all(b.name == name for _, b in judged(steps(40), **others))
    assert judged(steps(40), **others, **{name: None}) == []


def test_a_student_that_never_ended_an_answer_and_a_sure_teacher_break_nothing() -> None:
    sure = {**HEALTHY, "student_entropy": 0.001, "teacher_entropy": 0.05, "support_overlap": 0.2}
    assert judged((answers(60, ends=False), sure) for _ in range(60)) == []


def losses_judged(losses: Sequence[float], *, warm_up: int = 0, **guard: Any) -> list[int]:
    rules = Rules(loss=LossGuard(**guard), own=None, kept_length=KEPT)
    memory, found = Memory(), list[int]()
    for step, loss in enumerate(losses):
        seen = look(memory, [], {"loss": loss}, rules, warming_up=step < warm_up)
        memory = seen.memory
        found += [step for _ in seen.breaches]
    return found


def test_a_loss_that_runs_away_is_a_breach_and_a_spike_is_none() -> None:
    falling = [3 * 0.95**i for i in range(60)]
    assert losses_judged([*falling, *[4.0] * 6]) == [64]
    assert losses_judged([*falling, *[4.0] * 4, 0.2, *[4.0] * 4]) == []
    assert losses_judged([*falling, *[9.0] * 6, *[0.2] * 5], warm_up=80) == []
    assert losses_judged([*falling, *[4.0] * 6], times=100.0) == []
    assert losses_judged([1e-4] * 60 + [0.3] * 20) == []  # where all is learnt, a hard batch is many times nothing
    assert losses_judged([0.5 - i % 2 for i in range(200)]) == []  # policy gradients have either sign


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(3, 9))
def test_a_tail_that_repeats_is_found_with_all_its_tokens(head: list[int], unit: list[int], times: int) -> None:
    tail = unit * max(times, -(-8 // len(unit)))
    assert len(tail) - len(unit) < loop((*head, *tail)) <= len(head) + len(tail)
    assert loop((*head, 9, *tail)) <= len(tail)
    assert loop((*head, *range(10, 17))) == 0


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=9),
    st.floats(1e-9, 1e9),
    st.integers(0, 9),
)
def test_a_memory_comes_back_from_json_to_the_bit(losses: list[float], level: float, out: int) -> None:
    track = Track(level, 7, level / 3, level * 3, out)
    memory = Memory(factor=0.25, on_policy=True, losses=tuple(losses), high=out, tracks={"eos_rate": track})
    assert Memory.from_dict(json.loads(json.dumps(memory.as_dict()))) == memory


def test_lowering_halves_the_rate_and_stops_where_nothing_is_left_of_it() -> None:
    lower, memory = Breach("eos_rate", "too low", "lower"), Memory()
    for halved in range(1, 7):
        memory, stop = decided(memory, [lower])
        assert memory.factor == 0.5**halved and stop is None
    _, stop = decided(memory, [lower])
    assert stop is not None and "lowered to 1/64 already" in stop.says
    assert decided(Memory(), [Breach("eos_rate", "too low", "log")]) == (Memory(), None)
    assert decided(Memory(), [lower, Breach("loss", "high", "stop")])[1] == Breach("loss", "high", "stop")


def test_a_gradient_that_is_not_finite_moves_nothing(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    state = TrainState(model, TrainSettings.model_validate({"method": {"kind": "sft"}}))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(model.parameters()).grad[0, 0] = float("inf")
    before = [p.clone() for p in model.parameters()]
    assert state.update(rate=0.1) == float("inf")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_absurd_learning_rate_is_stopped_with_the_batch_on_disk(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    # It writes from the first step on: one that was ruined before is as dull as its own start, and then only the luck
    # of rounding makes it loop. So here its entropy falls from all there is to nothing, on any machine.
    on_policy = {"max_tokens": 24, "warm_up": 0.0, "slots": 8}
    sick = {"learning_rate": 10.0, "epochs": 8, "on_policy": on_policy}
    path = recipe_on_policy(tmp_path, tiny_model, teacher, precision="fp32", **sick)
    run = tmp_path / "run"
    assert execute(["run", str(path), "--run", str(run)]) == 8
    said = capsys.readouterr().err
    (file,) = (run / "stopped" / "student").glob("step-*.json")
    assert said.count("\n") == 1 and str(file) in said.replace("\n", "")
    batch = json.loads(file.read_text())
    assert batch["step"] <= 25 and f"stopped at step {batch['step']}: {batch['why']}" in said
    kept = pq.read_metadata(run / "examples" / "selected.parquet").num_rows
    learned = kept - math.ceil(kept / 20)  # one in twenty is held back
    last = batch["step"] % math.ceil(learned / 8) == 0  # of its epoch
    assert len(batch["examples"]) == (learned % 8 or 8 if last else 8)
    assert batch["loss"] is not None and batch["gradient_norm"] is not None
    first = batch["examples"][0]
    assert first["written_by_student"] and first["prompt"].startswith("<|im_start|>user\nsay ")
    assert len(first["answer_ids"]) <= 24 and first["answer"] != ""
    logged = Metrics(run / "metrics.jsonl").rows("student")[-1]
    assert {"rollout_length", "eos_rate", "repetition", *HEALTHY} <= set(logged) and logged["step"] == batch["step"]
    assert logged["log_probability_gap"] < 1e-3 and 0 <= logged["support_overlap"] <= 1


def test_lowering_goes_on_and_resumes_to_the_bit(
    tmp_path: Path, tiny_model: Path, make_tiny_model: Callable[..., Path]
) -> None:
    """No two ways to compute a probability agree to 1e-12 nats: a breach in every step from the sixth on."""
    teacher = make_tiny_model(tmp_path / "teacher", seed=1)
    guards = {"action": "lower", "patience": 4, "log_probability_gap": 1e-12}
    on_policy = {"max_tokens": 4, "warm_up": 0.0, "slots": 5, "guards": guards}
    path = recipe_on_policy(tmp_path, tiny_model, teacher, epochs=3, checkpoint_seconds=1e-6, on_policy=on_policy)
    recipe = load_recipe(path)

    def trained(run: Path, stops: Sequence[int]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        Run(recipe, run).generate()
        Run(recipe, run).verify()
        for stop in stops:

            def watch(progress: object, stop: int = stop) -> None:
                if getattr(progress, "stage", "") == "train" and getattr(progress, "done", 0) == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                Run(recipe, run, watch).train()
        weights = AutoModelForCausalLM.from_pretrained(Run(recipe, run).train()["student"]).state_dict()
        return weights, Metrics(run / "metrics.jsonl").rows("student")

    (whole, log), (resumed, again) = trained(tmp_path / "a", []), trained(tmp_path / "b", [4, 8, 9])
    assert log == again and all(torch.equal(whole[name], resumed[name]) for name in whole)
    drops = [after["learning_rate"] / before["learning_rate"] for before, after in pairwise(log)]
    broken = [row["step"] for row in log if "breaches" in row]
    assert broken == [9, 13] and {name for row in log for name in row.get("breaches", ())} == {"log_probability_gap"}
    assert [step for step, drop in enumerate(drops, start=2) if drop < 0.55] == [10, 14]  # the cosine takes a quarter
