"""`kill -9` at any moment of a training: what it comes to is the unbroken run's, to the bit."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killed_runs import (
    Lives,
    Missed,
    Moment,
    Witness,
    at_birth,
    in_step,
    keeping_signals,
    reading_the_teacher,
    result,
    saving,
    saving_the_model,
)
from student_runs import kept_answers, recipe_in

STEPS = 15
METHODS = ("sft", "live", "cached")
LORA = {"rank": 4, "alpha": 8, "dropout": 0.2}
ON_POLICY = {"max_tokens": 6, "warm_up": 0.1, "slots": 5, "share": 0.7}


def train_section(method: str, teacher: Path, signal: str) -> dict[str, Any]:
    often = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "average": 0.5, "checkpoint_seconds": 1e-6}
    if method == "sft":
        return often
    soft = {**often, "scored_by": {"model": str(teacher), "licence": "mit"}}
    if method == "on_policy":
        divergence = {"kind": "logit_kd", "divergence": "reverse_kl", "alpha": 0.0}
        return {**soft, "method": divergence, "on_policy": ON_POLICY}
    soft["method"] = {"kind": "logit_kd", "alpha": 0.5}
    return {**soft, "signal": {"kind": signal}} if method == "cached" else soft


class Runs:
    """The same training again and again, each in a run folder of its own that holds the kept answers already."""

    def __init__(self, lives: Lives, folder: Path, *, start: Path, teacher: Path) -> None:
        self._lives, self._folder, self._start, self._teacher = lives, folder, start, teacher
        kept_answers(recipe_in(folder, start), folder / "kept")

    def through(self, name: str, moments: list[Moment], *, method: str, lora: bool, signal: str = "top_k") -> Witness:
        """A run that was killed at each of the moments and then left alone. Where one was missed, as happens on a busy
        machine, another run from the start, whose kills come after shorter delays."""
        for again in range(3):
            folder = self._folder / (f"{name}-{again}" if again else name)
            with contextlib.suppress(Missed):
                sooner = [replace(moment, delay=moment.delay / 4**again) for moment in moments]
                return self._once(folder, sooner, method=method, lora=lora, signal=signal)
        raise Missed(f"a moment of {name} was missed in each of three runs")

    def _once(self, folder: Path, moments: list[Moment], *, method: str, lora: bool, signal: str) -> Witness:
        folder.mkdir()
        student = {"start": str(self._start), "licence": "mit", "layers": 2, "freeze_embeddings": lora}
        student |= {"lora": LORA} if lora else {}
        recipe_in(folder, self._start, student=student, train=train_section(method, self._teacher, signal))
        shutil.copytree(self._folder / "kept", folder / "run")
        witness = Witness(folder / "run")
        for moment in [*moments, None]:
            self._lives.live(["train", str(folder / "recipe.yaml"), "--run", str(folder / "run")], witness, moment)
        return witness


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, make_tiny_model: Callable[..., Path], tiny_model: Path
) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("kills")
    with Lives() as lives:
        yield Runs(lives, folder, start=tiny_model, teacher=make_tiny_model(folder / "teacher", seed=1))


def same(whole: Witness, broken: Witness) -> None:
    assert not list(broken.run.glob(".model-*"))  # what was half written is gone
    assert result(broken.run) == result(whole.run)
    both = whole.tensors.keys() & broken.tensors.keys()  # a busy machine may hide a few
    assert len(both) > STEPS / 2
    for step in both:  # every checkpoint of every life: weights, moments, average
        assert len(whole.tensors[step]) == 1 and whole.tensors[step] == broken.tensors[step]


MOMENTS: dict[str, list[Moment]] = {
    "sft": [Moment(saving(2)), Moment(saving_the_model)],
    "live": [Moment(in_step(3), 0.002), Moment(saving(8))],
    "cached": [Moment(keeping_signals), Moment(in_step(5))],
}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_two_kills_leave_every_bit_as_it_was(runs: Runs, method: str, lora: bool) -> None:
    whole = runs.through(f"whole-{method}-{lora}", [], method=method, lora=lora)
    same(whole, runs.through(f"broken-{method}-{lora}", MOMENTS[method], method=method, lora=lora))


def test_four_kills_of_an_on_policy_training_leave_every_bit_as_it_was(runs: Runs) -> None:
    moments = [Moment(in_step(3), 0.003), Moment(in_step(6), 0.01), Moment(saving(9)), Moment(saving_the_model)]
    whole = runs.through("whole-on-policy", [], method="on_policy", lora=False)
    same(whole, runs.through("broken-on-policy", moments, method="on_policy", lora=False))


def soaked(draw: random.Random, method: str, kills: int) -> list[Moment]:
    """A kill at birth or while signals are computed, one while the model is saved, the others on the way, forwards."""
    first = {"cached": [Moment(reading_the_teacher, draw.random() / 50), Moment(keeping_signals)]}.get(method, [])
    first = [*first, Moment(at_birth, draw.random() / 2)]
    steps = sorted(draw.sample(range(2, STEPS), kills - len(first) - 1))
    between = [Moment(saving(at) if draw.random() < 0.4 else in_step(at), draw.random() / 100) for at in steps]
    return [*first, *between, Moment(saving_the_model, draw.random() / 100)]


@pytest.mark.soak
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("method", "signal"), [("sft", ""), ("live", ""), ("cached", "sampled"), ("cached", "hidden")])
def test_sixty_four_kills(runs: Runs, method: str, signal: str, lora: bool) -> None:
    """Eight kills of each of eight trainings."""
    name = f"{method}-{signal}-{lora}"
    moments = soaked(random.Random(name), method, 8)
    assert len(moments) == 8
    how: dict[str, Any] = {"method": method, "signal": signal, "lora": lora}
    whole = runs.through(f"soak-whole-{name}", [], **how)
    same(whole, runs.through(f"soak-broken-{name}", moments, **how))


@pytest.mark.soak
def test_ten_kills_of_an_on_policy_training(runs: Runs) -> None:
    moments = soaked(random.Random(4), "on_policy", 10)
    whole = runs.through("soak-whole-on-policy", [], method="on_policy", lora=False)
    same(whole, runs.through("soak-broken-on-policy", moments, method="on_policy", lora=False))
