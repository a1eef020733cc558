"""A text recipe with every control and an arm of its own: all are trained, tested and shown, whatever was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from student_runs import equal, recipe_in, weights

from potstill.pipeline import Run, distill
from potstill.records import Progress
from potstill.store.metrics import Metrics
from potstill.store.run import RunFolder

TRAINED = ("student", "from_scratch", "sft", "four")
ARMS = ["teacher", *TRAINED, "base"]
LABELS = ("Student", "From scratch", "SFT", "four", "Base")
CLOCK = {"prompts_per_second", "peak_memory_bytes"}


def timeless(scores: dict[str, Any]) -> dict[str, Any]:
    arms = {arm: {name: s for name, s in found.items() if name not in CLOCK} for arm, found in scores["arms"].items()}
    return {**{name: value for name, value in scores.items() if name != "cost"}, "arms": arms}


def test_a_run_killed_in_its_second_arm_ends_as_an_unbroken_one(tmp_path: Path, tiny_model: Path) -> None:
    scorer = {"model": str(tiny_model), "licence": "mit"}
    recipe = recipe_in(
        tmp_path,
        tiny_model,
        train={
            "method": {"kind": "logit_kd"},
            "scored_by": scorer,
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 0.01,
            "checkpoint_seconds": 1e-6,
        },
        controls=["base", "from_scratch", "sft"],
        arms={"four": {"student.layers": 4}},
    )
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    distill(recipe, folder=whole.path)

    def killed(progress: Progress) -> None:
        if (progress.stage, progress.what, progress.done) == ("train", "from_scratch", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(recipe, folder=broken.path, watch=killed)
    assert broken.read_scores() is None and not broken.arm_model("from_scratch").exists()
    seen: list[Progress] = []
    distill(recipe, folder=broken.path, watch=seen.append)

    done = {(one.stage, one.what) for one in seen if one.note == "already done"}
    assert {("generate", "generate"), ("verify", "verify"), ("train", "student")} <= done
    assert not {("train", arm) for arm in TRAINED[1:]} & done
    taken = [one.done for one in seen if (one.stage, one.what) == ("train", "from_scratch") and one.done]
    assert taken[0] == 4, "steps that were saved were taken again"

    scores = whole.read_scores()
    assert scores is not None and (again := broken.read_scores()) is not None
    assert list(scores["arms"]) == ARMS and timeless(scores) == timeless(again)
    assert set(scores["paired"]) == {f"student - {arm}" for arm in ARMS if arm != "student"}
    assert set(scores["gap_recovered"]) == {"from_scratch", "sft", "four", "base"}
    logs = [Metrics(run.metrics) for run in (whole, broken)]
    for arm in TRAINED:
        assert equal(weights(whole.arm_model(arm)), weights(broken.arm_model(arm))), arm
        one, other = ([{k: v for k, v in row.items() if "second" not in k} for row in log.rows(arm)] for log in logs)
        assert one == other and len(one) >= 8, arm
    page = broken.report.read_text()
    assert all(f">{label}<" in page for label in LABELS)


def test_a_single_arm_is_trained_by_its_name(tmp_path: Path, tiny_model: Path) -> None:
    train = {"epochs": 1, "batch_size": 20}
    recipe = recipe_in(tmp_path, tiny_model, train=train, arms={"four": {"student.layers": 4}})
    run = Run(recipe, tmp_path / "run")
    run.generate()
    run.verify()
    assert run.train("four") == {"four": run.folder.arm("four") / "model"}
    assert not run.folder.model.exists()
