"""`potstill run` on a run that is finished: it says so at once, without torch, and asks nobody anything."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import choices_by_hand
import pytest
import student_runs

from potstill.cli import execute

AGAIN = """
import json, sys, time
from potstill.cli import execute
code = execute(sys.argv[1:])
said = {"code": code, "torch": "torch" in sys.modules, "seconds": time.process_time()}
print(json.dumps(said), file=sys.stderr)
"""
"""The whole life of the process, the start of Python included, in seconds of its own."""


def of_texts(folder: Path, model: Path) -> None:
    student_runs.recipe_in(folder, model, train={"epochs": 1, "batch_size": 20}, arms={"three": {"student.layers": 3}})


def of_choices(folder: Path, model: Path) -> None:
    student = {"start": str(model), "licence": "mit", "layers": 2}
    reader = {"kind": "encoder", "shape": {"layers": 1, "hidden": 16, "heads": 2}, "tokenizer": str(model)}
    choices_by_hand.recipe_in(
        folder,
        teacher={"model": str(model), "licence": "mit", "engine": {"kind": "local"}},
        verify={"checks": [{"kind": "confidence", "at_least": 0.0}], "processes": 1},
        student=student,
        train={"epochs": 1, "method": {"kind": "logit_kd"}},
        arms={"reader": {"student": reader}},
    )


def attempts(run: Path) -> dict[str, int]:
    """How many requests each ledger of the run holds."""
    found: dict[str, int] = {}
    for path in run.rglob("ledger.sqlite"):
        with sqlite3.connect(path) as db:
            found[str(path.relative_to(run))] = db.execute("SELECT count(*) FROM attempts").fetchone()[0]
    return found


@pytest.mark.parametrize("of", [of_texts, of_choices])
def test_a_finished_run_is_not_done_again(
    of: Callable[[Path, Path], None], tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of(tmp_path, tiny_model)
    words = ["run", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]
    assert execute(words) == 0
    capsys.readouterr()
    before, scores = attempts(tmp_path / "run"), (tmp_path / "run" / "scores.json").read_bytes()
    assert sum(before.values()) > 40 and len(before) >= 4
    seconds: list[float] = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", AGAIN, *words], capture_output=True, text=True, check=True)
        said = json.loads(done.stderr.splitlines()[-1])
        assert (said["code"], said["torch"]) == (0, False), done.stderr
        assert "student - base" in done.stdout
        seconds.append(said["seconds"])
    assert attempts(tmp_path / "run") == before and (tmp_path / "run" / "scores.json").read_bytes() == scores
    assert min(seconds) < 3, seconds
