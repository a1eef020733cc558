"""What makes another student, and so another training, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from student_runs import recipe_in

from potstill.generate.fingerprints import Fingerprints
from potstill.recipe import arms_of
from potstill.store.run import RunFolder

KEPT = b"the kept answers"


def of_student(folder: Path, model: Path, kept: bytes = KEPT, **changes: Any) -> str:
    recipe, run = recipe_in(folder, model, **changes), RunFolder(folder / "run")
    run.selected.parent.mkdir(parents=True, exist_ok=True)
    run.selected.write_bytes(kept)
    return Fingerprints(recipe, run).train(arms_of(recipe)[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"kept": b"other answers"},
        {"seed": 1},
        {"train": {"epochs": 31, "batch_size": 8, "learning_rate": 0.01}},
        {"student": {"start": "MODEL", "licence": "mit", "layers": 1, "freeze_embeddings": False}},
    ],
)
def test_another_student(changes: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    if "student" in changes:
        changes = {"student": {**changes["student"], "start": str(tiny_model)}}
    assert of_student(tmp_path, tiny_model, **changes) != of_student(tmp_path, tiny_model)


@pytest.mark.parametrize(
    "changes",
    [
        {"controls": ["base"]},
        {"arms": {"three": {"student.layers": 3}}},
        {"train": {"epochs": 30, "batch_size": 8, "learning_rate": 0.01, "report_to": ["tensorboard"]}},
    ],
)
def test_the_same_student(changes: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    assert of_student(tmp_path, tiny_model, **changes) == of_student(tmp_path, tiny_model)
