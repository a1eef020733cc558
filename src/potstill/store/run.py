"""The run folder: one folder holds everything that a recipe produced.

recipe.yaml      resolved, written first     examples/*.parquet   what the student learnt from
ledger.sqlite    prompts to predictions      checkpoints/ARM/     while an arm is training
metrics.jsonl    learning curves             model/, controls/    what came out
scores.json      arms and intervals          report.html          for people
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potstill.errors import InputError
from potstill.recipe import choices as choice_recipes
from potstill.recipe import file as recipe_file
from potstill.recipe import load_recipe
from potstill.recipe.choices import ChoiceRecipe
from potstill.recipe.whole import Recipe, is_data_recipe
from potstill.store.files import write_atomic
from potstill.store.ledger import Ledger
from potstill.store.requests import Requests


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder and the recipe it belongs to."""

    folder: Path
    recipe: ChoiceRecipe

    @property
    def examples(self) -> Path:
        return self.folder / "examples" / "train.parquet"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def arm_model(self, arm: str) -> Path:
        """Where the trained model of an arm lies."""
        return self.model if arm == "student" else self.folder / "controls" / arm

    def checkpoints(self, arm: str) -> Path:
        return self.folder / "checkpoints" / arm

    def read_scores(self) -> dict[str, Any] | None:
        """The content of scores.json, or None before the evaluation."""
        return json.loads(self.scores.read_text(encoding="utf-8")) if self.scores.is_file() else None


@contextmanager
def open_run(folder: Path, recipe: ChoiceRecipe) -> Generator[tuple[Run, Ledger]]:
    """Open or create the folder for `recipe` and hold its lock.

    Raises InputError where another process holds it, or where it was made with other prompts or another teacher.
    What lies behind them (checks, student, method) may change: the stages concerned are run again.
    """
    with _locked(folder):
        _check_same(folder, recipe)
        write_atomic(folder / "recipe.yaml", recipe_file.as_yaml(recipe))
        with Ledger(folder / "ledger.sqlite") as ledger:
            yield Run(folder, recipe), ledger


@contextmanager
def open_data_run(folder: Path, recipe: Recipe) -> Generator[Requests]:
    """Open or create the folder for a data recipe and hold its lock.

    Everything but its name may have changed: answers are kept by what was asked. Raises InputError as `open_run` does.
    """
    with _locked(folder):
        stored = folder / "recipe.yaml"
        if stored.is_file() and not (is_data_recipe(stored) and load_recipe(stored).name == recipe.name):
            raise InputError(
                f"'{folder}' belongs to another recipe",
                way_out="give the run another folder (--run) or the recipe another name",
            )
        write_atomic(stored, recipe_file.as_yaml(recipe))
        with Requests(folder / "ledger.sqlite") as requests:
            yield requests


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file, not a run folder", way_out="choose another --run")
    strange = folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())
    if strange and not (folder / "recipe.yaml").is_file():
        raise InputError(
            f"'{folder}' is not empty and not a run folder (no recipe.yaml)",
            way_out="choose another --run",
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another potstill process is working in '{folder}'",
            way_out="wait for it or choose another --run",
        ) from None
    try:
        yield
    finally:
        lock.release()


def recipe_of(folder: Path) -> ChoiceRecipe:
    """The recipe of an existing run folder."""
    if not (folder / "recipe.yaml").is_file():
        raise InputError(
            f"'{folder}' is not a run folder (no recipe.yaml)",
            way_out="see `potstill runs` for those there are",
        )
    return choice_recipes.load_choice_recipe(folder / "recipe.yaml")


_PAID_FOR = ("name", "seed", "prompts", "teacher", "answers")
_MAY_CHANGE = (
    ("prompts", "split"),
    ("answers", "prior"),
)  # more prompts are asked, the others keep their answers


def _check_same(folder: Path, recipe: ChoiceRecipe) -> None:
    if not (folder / "recipe.yaml").is_file():
        return
    old, new = (r.model_dump(mode="json", include=set(_PAID_FOR)) for r in (recipe_of(folder), recipe))
    for section, key in _MAY_CHANGE:
        del old[section][key], new[section][key]
    if key := recipe_file.first_difference(old, new):
        raise InputError(
            f"'{folder}' belongs to another recipe: '{key}' differs",
            way_out="give the run another folder (--run) or the recipe another name, or delete the folder",
        )
