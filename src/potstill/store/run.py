"""The run folder: one folder holds everything that a recipe produced.

recipe.yaml      resolved, written first         model/           the student, with its card
day              on which the run began
ledger.sqlite    what was asked and answered     arms/NAME/       every other arm's model; checkpoints while it trains
examples/        what checks said and kept       test/NAME/       every arm's answers to the test prompts, in a ledger
judge/ rescue/ expansion/   other ledgers        calibration.json of a teacher that chooses
signals/         the teacher's, if not shared    metrics.jsonl    learning curves
scores.json      arms and intervals              report.html      for people
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potstill.errors import InputError
from potstill.recipe import Recipe, load_recipe
from potstill.recipe import file as recipe_file
from potstill.store.files import write_atomic
from potstill.store.requests import Requests
from potstill.text.template import today

STUDENT = "student"
"""The arm that the run is for."""


class _Inside:
    """A path inside the folder that it is asked of."""

    def __init__(self, *parts: str) -> None:
        self._parts = parts

    def __get__(self, run: RunFolder, _: type[RunFolder]) -> Path:
        return run.path.joinpath(*self._parts)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where everything of a run lies."""

    path: Path

    recipe = _Inside("recipe.yaml")
    ledger = _Inside("ledger.sqlite")
    answers = _Inside("examples", "answers.parquet")
    """Every usable answer of the teacher."""
    selected = _Inside("examples", "selected.parquet")
    """What to train on."""
    verdicts = _Inside("examples", "verdicts.parquet")
    calibration = _Inside("calibration.json")
    metrics = _Inside("metrics.jsonl")
    scores = _Inside("scores.json")
    report = _Inside("report.html")
    model = _Inside("model")
    """The student's model folder: what the run is for."""

    def kept(self, *, verified: bool) -> Path:
        """The answers that are trained on: the selected ones, or all where nothing is checked."""
        return self.selected if verified else self.answers

    def arm(self, name: str) -> Path:
        """What belongs to one arm alone: checkpoints, what is known of it, and its model unless it is the student."""
        return self.path / "arms" / name

    def arm_model(self, name: str) -> Path:
        return self.model if name == STUDENT else self.arm(name) / "model"

    @property
    def day(self) -> date:
        """On which the run began: what templates that ask for today's date are told, however long it takes."""
        return date.fromisoformat((self.path / "day").read_text(encoding="utf-8"))

    def test(self, name: str) -> Path:
        """An arm's answers to the test prompts: a folder with a ledger of its own."""
        return self.path / "test" / name

    def read_scores(self) -> dict[str, Any] | None:
        """The content of scores.json, or None before the evaluation."""
        return read_json(self.scores)

    def read_recipe(self) -> Recipe:
        """Raises InputError where this is no run folder."""
        if not self.recipe.is_file():
            raise InputError(
                f"'{self.path}' is not a run folder (no recipe.yaml)", way_out="see `potstill runs` for those there are"
            )
        return load_recipe(self.recipe)


def read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@contextmanager
def open_run(path: Path, recipe: Recipe) -> Generator[RunFolder]:
    """Open or create the folder for `recipe` and hold its lock.

    Everything but its name may have changed: answers are kept by what was asked, and every other stage by what it was
    made from. Raises InputError where another process holds the folder, or another recipe made it.
    """
    folder = RunFolder(path)
    _refuse_what_is_no_run(folder)
    with locked(path):
        if folder.recipe.is_file() and recipe_file.value_at(folder.recipe, "name") != recipe.name:
            raise InputError(
                f"'{path}' belongs to another recipe",
                way_out="give the run another folder (--run) or the recipe another name",
            )
        write_atomic(folder.recipe, recipe_file.as_yaml(recipe))
        if not (path / "day").is_file():
            write_atomic(path / "day", today().isoformat())
        yield folder


@contextmanager
def open_ledger(folder: Path) -> Generator[Requests]:
    """The ledger of a sub-run (a judge's, a rescue's, an arm's test), its folder made and locked."""
    with locked(folder), Requests(folder / "ledger.sqlite") as requests:
        yield requests


@contextmanager
def locked(folder: Path) -> Generator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another potstill process is working in '{folder}'", way_out="wait for it or choose another --run"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _refuse_what_is_no_run(folder: RunFolder) -> None:
    if folder.path.exists() and not folder.path.is_dir():
        raise InputError(f"'{folder.path}' is a file, not a run folder", way_out="choose another --run")
    strange = folder.path.is_dir() and any(path.name != ".lock" for path in folder.path.iterdir())
    if strange and not folder.recipe.is_file():
        raise InputError(
            f"'{folder.path}' is not empty and not a run folder (no recipe.yaml)", way_out="choose another --run"
        )
