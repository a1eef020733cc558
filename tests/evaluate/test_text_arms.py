"""Arms that write, on the test prompts: asked once, resumed where they were killed, again and again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from student_runs import recipe_in

from potstill.engines.slots import Rollouts
from potstill.errors import Stopped
from potstill.evaluate.base import base_student
from potstill.models.identity import fingerprint
from potstill.models.save import save_model
from potstill.pipeline import Run
from potstill.recipe import Recipe, load_recipe
from potstill.recipe.student import Student
from potstill.store.requests import Requests
from potstill.store.run import RunFolder
from potstill.store.stages import Stages
from potstill.store.verdicts import read_verdicts

ARMS = {"student": [0, 1], "small": [0]}


def made_in(folder: Path, model: Path) -> tuple[Recipe, RunFolder]:
    """A run whose arms are, as it happens, what they were before their first step."""
    recipe = recipe_in(
        folder,
        model,
        arms={"small": {"student.layers": 1}},
        train={"predict_with_generate": True},
        verify={"checks": [{"kind": "exact"}], "processes": 1},
    )
    run = RunFolder(folder / "run")
    Run(recipe, run.path).generate()
    Run(recipe, run.path).verify()
    assert isinstance(recipe.student, Student)
    for arm, layers in ARMS.items():
        run.arm(arm).mkdir(parents=True)
        for known in {arm, "student"}:
            (run.arm(known) / "trained.json").write_text(json.dumps({"layers": layers}))
        model_made, codec, start = base_student(recipe.student, run, seed=0)
        end = codec.end_of_turn("x")
        save_model(model_made, codec, tokenizer_from=start, end_of_turn=end, max_new_tokens=12, to=run.arm_model(arm))
    (run.arm("student") / "trained.json").write_text(json.dumps({"layers": ARMS["student"]}))
    with Stages(run.ledger) as stages:
        for arm in ARMS:
            stages.finish(f"train:{arm}", f"trained {arm}", 1.0)
    return recipe, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_tiny_model: Callable[..., Path]) -> tuple[Recipe, RunFolder]:
    place = tmp_path_factory.mktemp("texts")
    recipe, run = made_in(place, make_tiny_model(place / "model"))
    Run(recipe, run.path).evaluate()
    return recipe, run


def texts(run: RunFolder, arm: str) -> dict[str, str]:
    with Requests(run.test(arm) / "ledger.sqlite") as requests:
        return {prompt.id: sample.text for prompt, sample in requests.samples(most=1)}


def attempts(run: RunFolder, arm: str) -> int:
    with sqlite3.connect(run.test(arm) / "ledger.sqlite") as db:
        return db.execute("SELECT count(*) FROM attempts WHERE state = 'read'").fetchone()[0]


def timeless(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name != "cost"}


def test_scores_have_the_shape_of_every_task(made: tuple[Recipe, RunFolder]) -> None:
    _, run = made
    scores = run.read_scores()
    assert scores is not None and scores["task"] == "text" and scores["majority"] is scores["calibration"] is None
    assert list(scores["arms"]) == ["teacher", "student", "small", "base"]
    assert set(scores["paired"]) == {"student - teacher", "student - small", "student - base"}
    assert set(scores["gap_recovered"]) == {"small", "base"}
    assert scores["trained"] == {arm: f"trained {arm}" for arm in ARMS}
    for arm, metrics in scores["arms"].items():
        verdicts = list(read_verdicts(run.test(arm) / "examples" / "verdicts.parquet"))
        assert metrics["accuracy"] == metrics["accuracy"] | {"n": 16, "value": sum(v.kept for v in verdicts) / 16}
        assert sum(scores["wrong"][arm].values()) == 16 - sum(
            v.kept for v in verdicts
        )  # an empty answer has no verdict
    assert scores["arms"]["student"]["parameters"]["value"] > scores["arms"]["small"]["parameters"]["value"]
    assert scores["cost"]["tokens"] > 0 and scores["cost"]["money"] == 0


def test_the_base_writes_what_the_student_wrote_before_its_first_step(made: tuple[Recipe, RunFolder]) -> None:
    _, run = made
    (base,) = run.test("base").glob("model-*")
    assert texts(run, "base") == texts(run, "student") and fingerprint(base) == fingerprint(run.model)


def test_a_second_evaluation_asks_nobody_though_training_asked_the_checks(made: tuple[Recipe, RunFolder]) -> None:
    """`train.predict_with_generate` needs `verify`, which no arm's test has."""
    recipe, run = made
    before, arms = run.read_scores() or {}, ("teacher", "student", "small", "base")
    asked = [attempts(run, arm) for arm in arms]
    with Stages(run.ledger) as stages:
        for name in ("evaluate", *(f"evaluate:{arm}" for arm in arms)):
            stages.forget(name)
    assert timeless(Run(recipe, run.path).evaluate()) == timeless(before)
    assert [attempts(run, arm) for arm in arms] == asked == [16] * 4


def test_a_stopped_evaluation_goes_on_in_the_middle_of_the_students_answers(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = made_in(tmp_path, tiny_model)
    assert recipe.evaluate is not None
    few = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"batch_size": 1})})
    write = Rollouts.roll_out

    def interrupted(*args: Any, **how: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # until it was heard
        return write(*args, **how)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Rollouts, "roll_out", interrupted)
        Run(few, run.path).evaluate()
    assert attempts(run, "teacher") == 16 and 0 < attempts(run, "student") < 16
    (tmp_path / "answers.jsonl").write_text("")  # whoever asks the teacher once more is refused
    scores = Run(few, run.path).evaluate()
    assert attempts(run, "student") == 16 and scores["arms"]["student"]["accuracy"]["n"] == 16
    whole = RunFolder(run.path.with_name("whole"))
    shutil.copytree(run.path, whole.path)
    shutil.rmtree(whole.test("student"))
    with Stages(whole.ledger) as stages:
        stages.forget("evaluate:student")
    unbroken = Run(few, whole.path).evaluate()
    assert timeless(scores) == timeless(unbroken) and texts(run, "student") == texts(whole, "student")


def test_a_base_of_other_layers_is_made_anew(made: tuple[Recipe, RunFolder], tmp_path: Path) -> None:
    recipe, run = made
    again = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, again.path)
    (again.arm("student") / "trained.json").write_text('{"layers": [1]}')
    with Stages(again.ledger) as stages:
        stages.finish("train:student", "trained otherwise", 1.0)
    Run(recipe, again.path).evaluate()
    (folder,) = again.test("base").glob("model-*")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 1
    assert folder.name not in {path.name for path in run.test("base").glob("model-*")}


def test_test_prompts_may_be_held_out_of_the_prompts(tmp_path: Path, tiny_model: Path) -> None:
    recipe, run = made_in(tmp_path, tiny_model)
    split = "prompts.split={train: 30, validation: 4, test: 6}"
    checks = "evaluate={checks: [{kind: exact}], max_tokens: 6}"
    held = load_recipe(tmp_path / "recipe.yaml", [split, checks, "controls=[]", "arms={}"])
    Run(held, run.path).generate()
    found = Run(held, run.path).verify()
    assert found.prompts.total() == 34 and recipe.name == held.name  # those to validation prompts are held back
    scores = Run(held, run.path).evaluate()
    assert scores["arms"]["teacher"]["accuracy"]["n"] == 6
    with Requests(run.ledger) as requests:
        learned = {prompt.id for prompt, _ in requests.samples(split="train")}
    assert not learned & set(texts(run, "teacher")) and scores["arms"]["student"]["accuracy"]["n"] == 6
