"""The stage `evaluate`: every arm answers the test prompts once, and what came of it becomes scores.json.

test/ARM/ledger.sqlite               its answers
test/ARM/examples/verdicts.parquet   what the checks said of them (texts)
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from potstill.dispatch.money import DOLLAR
from potstill.errors import InputError
from potstill.evaluate.choices import evaluate_choices
from potstill.evaluate.compare import Scores, score_arms, score_texts
from potstill.evaluate.ledgers import ArmTest
from potstill.evaluate.predictions import Predictions
from potstill.evaluate.texts import check_answers, evaluate_texts
from potstill.recipe import Recipe
from potstill.recipe.task import Choice, Text
from potstill.records import Progress, Score, Watch
from potstill.store.files import write_atomic
from potstill.store.requests import glance
from potstill.store.run import STUDENT, RunFolder
from potstill.store.stages import Stages
from potstill.verify.calibrate import read_calibration


def evaluate_arm(recipe: Recipe, run: RunFolder, stages: Stages, arm: str, watch: Watch) -> None:
    """An arm that is trained, or `teacher`, `base` or `tfidf`, answers the test prompts that it has not answered yet as
    it is now. Raises a PotstillError; what was answered is kept."""
    test = ArmTest(recipe, run, arm, _made_of(recipe, run, stages, arm), watch)
    match recipe.task:
        case Text():
            measured = evaluate_texts(test)
        case Choice():
            measured = evaluate_choices(test)
    stages.put_measured(arm, measured)


def _made_of(recipe: Recipe, run: RunFolder, stages: Stages, arm: str) -> str:
    """Changes with the arm's weights. The teacher's answers are told apart by its questions."""
    if arm == "teacher":
        return ""
    if arm == "tfidf":
        return hashlib.sha256(run.kept(verified=recipe.judged).read_bytes()).hexdigest() + f" {recipe.seed}"
    trained = STUDENT if arm == "base" else arm
    if (found := stages.finished(f"train:{trained}")) is None:
        raise InputError(f"there is no {trained} in '{run.path}' yet", way_out="potstill train first")
    return f"{arm} {found}"


def compare(recipe: Recipe, run: RunFolder, stages: Stages, arms: Sequence[str], watch: Watch) -> dict[str, Any]:
    """Everything that the arms answered becomes scores.json, which is returned."""
    assert recipe.evaluate is not None
    how, wrong = recipe.evaluate, dict[str, Counter[str]]()
    drawn = {"count": how.resamples, "seed": recipe.seed}
    own: dict[str, Any] = {"majority": None, "calibration": None}
    match recipe.task:
        case Text():
            results = {arm: check_answers(run.test(arm), how) for arm in arms}
            wrong = {arm: result.reasons for arm, result in results.items()}
            scores, paired, gaps = score_texts({arm: r.passed for arm, r in results.items()}, **drawn)
        case Choice():
            calibration = read_calibration(run)
            predictions = Predictions.of(recipe, run, calibration)
            answers = predictions.answers(arms)
            wrong = predictions.wrong
            scores, paired, gaps = score_arms(answers, **drawn)
            own = {"majority": predictions.majority, "calibration": asdict(calibration)}
    table = {
        "recipe": recipe.name,
        "task": recipe.task.kind,
        "arms": {arm: _with_measured(scores, arm, stages.measured(arm)) for arm in scores},
        "paired": paired,
        "gap_recovered": gaps,
        "cost": _cost(run, stages),
        "wrong": {arm: dict(reasons.most_common()) for arm, reasons in wrong.items()},
        "teacher": {"model": recipe.teacher.model, "licence": recipe.teacher.licence},
        "trained": {arm: found for arm in arms if (found := stages.finished(f"train:{arm}"))},
        **own,
    }
    written = json.dumps(table, indent=1)
    write_atomic(run.scores, written)
    watch(Progress(stage="evaluate", what="comparison", done=len(arms), total=len(arms)))
    return json.loads(written)


def _with_measured(scores: Scores, arm: str, measured: Mapping[str, float]) -> dict[str, Any]:
    """`measured` stands for all test prompts but for exact_answers, which brings its number along."""
    n = next(iter(scores[arm].values())).n
    counts = {"exact_answers": int(measured.get("exact_answers_n", 0))}
    values = {name: value for name, value in measured.items() if name != "exact_answers_n"}
    named = {name: Score(value=value, n=counts.get(name, n)) for name, value in values.items()}
    return {name: score.as_dict() for name, score in (scores[arm] | named).items()}


def _cost(run: RunFolder, stages: Stages) -> dict[str, Any]:
    """What the run took so far: seconds of its stages, tokens of its teachers, dollars of everybody who is paid."""
    teachers = [run.path, run.test("teacher"), run.path / "rescue", run.path / "expansion"]
    asked = [totals for folder in teachers if (totals := glance(folder))]
    judges = [totals for folder in sorted((run.path / "judge").glob("*")) if (totals := glance(folder))]
    paid = sum(totals.get(name, 0) for totals in (*asked, *judges) for name in ("paid", "maybe"))
    speeds = {arm: stages.measured(arm).get("prompts_per_second") for arm in ("teacher", STUDENT)}
    return {
        "seconds": sum(stages.seconds().values()),
        "tokens": sum(t.get(name, 0) for t in asked for name in ("prompt tokens", "completion tokens")),
        "money": paid / DOLLAR,
        "per_1000_answers": {f"{arm}_seconds": 1000 / speed for arm, speed in speeds.items() if speed},
    }
