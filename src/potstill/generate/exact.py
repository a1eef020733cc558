"""Whether the models of this process are computed exactly: before anything is paid for, of those on this machine.

The self-test needs torch, which takes seconds: what passed is remembered, and asked for without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.models.locate import cache_folder, hub_snapshot, locate
from potstill.models.source import source_hash
from potstill.recipe import Recipe, arms_of
from potstill.recipe.student import Student
from potstill.recipe.task import Choice
from potstill.recipe.teacher import Local

if TYPE_CHECKING:
    from potstill.engines.selftest import Need


@dataclass(frozen=True, slots=True)
class _Use:
    """A model of this process: its key in the recipe, its name, and what is done with it."""

    key: str
    model: str
    revision: str | None
    needs: frozenset[Need]

    @property
    def config(self) -> Path | None:
        """Its config.json, where it is on this machine."""
        located = locate(self.model)
        folder = hub_snapshot(self.model, self.revision) if located.form == "hub" else located.path
        found = None if folder is None or folder.is_file() else folder / "config.json"
        return found if found is not None and found.is_file() else None


def require_exact_models(recipe: Recipe) -> None:
    """Raises InputError where an architecture is computed exactly on no path that the recipe needs. A GGUF file, and
    what is not on this machine yet, are looked at when they are loaded."""
    for use in _uses(recipe):
        if locate(use.model).form == "gguf" or (config := use.config) is None or (mark := _mark(use, config)).is_file():
            continue
        from potstill.engines.selftest import require_exact

        require_exact(config.parent, use.needs, named=f"{use.key} '{use.model}'")
        with suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def spoken_paths(recipe: Recipe) -> dict[str, str]:
    """What the self-test says of each model of this process, by its key in the recipe. Takes torch."""
    from potstill.engines.selftest import abilities_of, config_of

    found: dict[str, str] = {}
    for use in _uses(recipe):
        if locate(use.model).form == "gguf" or use.config is None:
            continue
        if (config := config_of(use.config.parent)) is not None:
            found[f"{use.key} ({config.model_type})"] = abilities_of(config).spoken()
    return found


def _mark(use: _Use, config: Path) -> Path:
    """Is there where the same code passed for the same configuration."""
    said = [config.read_bytes(), sorted(use.needs), version("torch"), version("transformers"), source_hash()]
    return cache_folder() / "selftests" / f"{hashlib.sha256(repr(said).encode()).hexdigest()}.passed"


def _uses(recipe: Recipe) -> Iterator[_Use]:
    teacher = recipe.teacher
    if isinstance(teacher.engine, Local):
        scores: set[Need] = {"scores"} if isinstance(recipe.task, Choice) else set()
        yield _Use("teacher.model", teacher.model, teacher.revision, frozenset(scores))
    for arm in arms_of(recipe):
        if (scored := arm.recipe.scored_by) is not None and scored.engine is None:
            yield _Use("train.scored_by.model", scored.model, scored.revision, frozenset({"scores"}))
        if isinstance(student := arm.student, Student):
            needs: set[Need] = {"learns"}
            if arm.recipe.train.gradient_checkpointing:
                needs.add("checkpoints")
            if student.layers is not None and student.has_learned:
                needs.add("cuts")
            yield _Use("student.start", student.start, student.revision, frozenset(needs))
