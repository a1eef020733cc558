"""`train.precision` reaches every model of a run, and what was computed in another is computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from choice_runs import tiny_quickstart
from data_runs import query
from student_runs import recipe_in

import potstill
from potstill.engines.local import ChoiceScorer
from potstill.engines.slots import Rollouts
from potstill.models.load import Loaded, compute_dtype, load
from potstill.models.precision import VARIABLE, Precision
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.records import Progress, unwatched
from potstill.report.stage import write_report
from potstill.store.run import RunFolder

BOTH: tuple[tuple[Precision, torch.dtype], ...] = (("bf16", torch.bfloat16), ("fp32", torch.float32))
SOFT = {"kind": "logit_kd", "divergence": "reverse_kl", "alpha": 0.0}


class Seen:
    """What a run did: the places that loaded or used a model with its dtype, and what it said was done already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *places: str) -> None:
        self.models: set[tuple[str, torch.dtype]] = set()
        self.kept: set[str] = set()
        for place in places:
            monkeypatch.setattr(f"potstill.{place}.load", self._loading(place))

    def _loading(self, place: str) -> Callable[..., Loaded]:
        def loading(*which: Any, **how: Any) -> Loaded:
            loaded = load(*which, **how)
            self.models.add((place, loaded.model.dtype))
            return loaded

        return loading

    def watch(self, progress: Progress) -> None:
        if progress.note == "already done":
            self.kept.add(progress.what)

    def forget(self) -> None:
        self.models.clear()
        self.kept.clear()


def test_of_free_text(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fp32")
    seen, run = Seen(monkeypatch, "engines.writer", "train.scored"), tmp_path / "run"

    class Noted(Rollouts):
        def __init__(self, model: Any, **how: Any) -> None:
            seen.models.add(("rollouts", model.dtype))
            super().__init__(model, **how)

    monkeypatch.setattr("potstill.train.rollout_buffer.Rollouts", Noted)
    on_policy = {"max_tokens": 3, "warm_up": 0.0, "guards": None}
    recipe_in(
        tmp_path,
        tiny_model,
        teacher={"model": str(tiny_model), "licence": "mit", "engine": {"kind": "local"}},
        generate={"n": 1, "max_tokens": 4, "truncated": "keep"},
        verify=None,
        train={"method": SOFT, "epochs": 1, "batch_size": 20, "on_policy": on_policy},
    )
    written: list[list[tuple[Any, ...]]] = []
    for precision, dtype in BOTH:
        recipe = load_recipe(tmp_path / "recipe.yaml", [f"train.precision={precision}"])
        Run(recipe, run).generate()
        Run(recipe, run, seen.watch).train()
        Run(recipe, run).evaluate()
        assert seen.models == {(place, dtype) for place in ("engines.writer", "train.scored", "rollouts")}
        assert seen.kept <= {"verify"}  # of the same answers
        assert f"<td>precision</td><td>{precision}</td>" in write_report(RunFolder(run), watch=unwatched).read_text()
        written.append(query(run, "SELECT * FROM attempts ORDER BY rowid"))
        seen.forget()
    assert written[0] == written[1]  # an answer stays what it was
    Run(load_recipe(tmp_path / "recipe.yaml"), run, seen.watch).train()
    assert seen.kept == {"student"} and not seen.models  # auto is fp32 here
    exams = query(run / "test" / "student", "SELECT count(DISTINCT question) FROM attempts")
    assert exams == [(2 * 16,)]


def test_of_choices(tmp_path: Path, make_tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fp32")
    teacher = make_tiny_model(tmp_path / "teacher")
    values = ("controls=[base]", "evaluate={resamples: 100, uncached_prompts: 2, generate_prompts: 2}")
    seen = Seen(monkeypatch, "evaluate.choices")

    def noted(place: str) -> type[ChoiceScorer]:
        class Noted(ChoiceScorer):
            def __init__(self, model: Any, choices: Any, **how: Any) -> None:
                seen.models.add((place, model.dtype))
                super().__init__(model, choices, **how)

        return Noted

    def taught_in() -> torch.dtype:
        seen.models.add(("train.language", compute_dtype()))
        return compute_dtype()

    scorers = ("evaluate.choices", "engines.local")  # the second of them is imported where the teacher is asked
    for place in scorers:
        monkeypatch.setattr(f"potstill.{place}.ChoiceScorer", noted(place))
    monkeypatch.setattr("potstill.train.language.compute_dtype", taught_in)
    places = (*scorers, "train.language")

    def walked(*more: str) -> None:
        seen.forget()
        recipe = tiny_quickstart(tmp_path, teacher, *values, *more)
        potstill.distill(recipe, folder=tmp_path / "run", watch=seen.watch)

    for precision, dtype in BOTH:
        walked(f"train.precision={precision}")
        asked = () if dtype == BOTH[0][1] else ("engines.local",)  # an answer stays what it was
        assert seen.models == {(place, dtype) for place in places if place not in asked}
        assert seen.kept <= {"verify"}  # of the same answers
        assert f"<td>precision</td><td>{precision}</td>" in (tmp_path / "run" / "report.html").read_text()
    walked()  # auto is fp32 here
    assert (
        not seen.models and {"generate", "verify", "student", "evaluate"} <= seen.kept
    )  # the page prints the recipe, which says auto now
