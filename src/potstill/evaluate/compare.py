"""From the arms' answers to the `arms`, `paired` and `gap_recovered` of scores.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.evaluate.metrics import (
    Answers,
    Array,
    Ints,
    expected_calibration_error,
    interval,
    rank_correlation,
    resamples,
)
from potstill.records import Score

Scores = dict[str, dict[str, Score]]
Metrics = Mapping[str, Mapping[str, Array]]
"""Arm -> metric -> its value on the prompts as they are (1,), or on every resample of them (B,)."""

PAIRED = ("accuracy", "agreement", "kl_to_teacher")


def score_arms(arms: Mapping[str, Answers], *, count: int, seed: int) -> tuple[Scores, dict[str, Any], dict[str, Any]]:
    """Scores of every arm with 95 % intervals; the student's paired differences to the others; the share of the gap
    between each control and the teacher that the student closed."""
    n = len(next(iter(arms.values())).reference_N)
    rows_BN = resamples(n, count=count, seed=seed)
    whole_1N = np.arange(n)[None, :]
    points = {arm: _metrics(answers, whole_1N) for arm, answers in arms.items()}
    draws = {arm: _metrics(answers, rows_BN) for arm, answers in arms.items()}
    return _scores(points, draws, n), paired(points, draws, PAIRED), gaps(points, draws, "accuracy")


def _scores(points: Metrics, draws: Metrics, n: int) -> Scores:
    return {
        arm: {m: Score(value=float(v[0]), n=n, ci95=interval(draws[arm][m])) for m, v in metrics.items()}
        for arm, metrics in points.items()
    }


def score_texts(
    passed: Mapping[str, Mapping[str, bool]], *, count: int, seed: int
) -> tuple[Scores, dict[str, Any], dict[str, Any]]:
    """The same of arms that write, from which prompts each answered rightly."""
    ids = list(passed["teacher"])
    rows_BN = resamples(len(ids), count=count, seed=seed)
    right = {arm: np.array([said[i] for i in ids], dtype=np.float64) for arm, said in passed.items()}
    points = {arm: {"accuracy": right_N.mean(keepdims=True)} for arm, right_N in right.items()}
    draws = {arm: {"accuracy": right_N[rows_BN].mean(axis=-1)} for arm, right_N in right.items()}
    return _scores(points, draws, len(ids)), paired(points, draws, ["accuracy"]), gaps(points, draws, "accuracy")


def validation_scores(answers: Answers) -> dict[str, Score]:
    """What the learning curves show: cheap, no intervals."""
    n = len(answers.reference_N)
    known = {"accuracy": answers.correct()} if (answers.reference_N >= 0).all() else {}
    values = {**known, "agreement": answers.agrees(), "kl_to_teacher": answers.kl_to_teacher()}
    return {name: Score(value=float(value_N.mean()), n=n) for name, value_N in values.items()}


def _metrics(answers: Answers, rows_BN: Ints) -> dict[str, Array]:
    correct_N = answers.correct()
    metrics = {
        "accuracy": correct_N[rows_BN].mean(axis=-1),
        "agreement": answers.agrees()[rows_BN].mean(axis=-1),
        "kl_to_teacher": answers.kl_to_teacher()[rows_BN].mean(axis=-1),
        "ece": expected_calibration_error(answers.p_NC.max(axis=-1), correct_N, rows_BN),
    }
    if answers.grade_N is not None and (answers.reference_N >= 0).all():
        metrics["rank_correlation"] = rank_correlation(_expected_grade(answers), answers.grade_N, rows_BN)
    return metrics


def _expected_grade(answers: Answers) -> Array:
    """The arm's probabilities as one number: the choices' mean human grades, weighted by their probability."""
    assert answers.grade_N is not None
    grade_N, reference_N = answers.grade_N, answers.reference_N
    present = [c for c in range(answers.p_NC.shape[1]) if (reference_N == c).any()]
    means = np.array([grade_N[reference_N == c].mean() for c in present])
    return answers.p_NC[:, present] @ means


def paired(points: Metrics, draws: Metrics, metrics: Sequence[str]) -> dict[str, Any]:
    """The student less every other arm."""
    return {
        f"student - {arm}": {
            m: {
                "value": float(points["student"][m][0] - points[arm][m][0]),
                "ci95": list(interval(draws["student"][m] - draws[arm][m])),
            }
            for m in metrics
        }
        for arm in points
        if arm != "student" and "student" in points
    }


def gaps(points: Metrics, draws: Metrics, metric: str) -> dict[str, Any]:
    """(student - control) / (teacher - control), by joint resampling; null where the denominator's interval includes 0.
    It may exceed 1: checks add knowledge that the teacher alone lacks."""
    found: dict[str, Any] = {}
    for control in points:
        if control in ("student", "teacher", "teacher_raw") or "student" not in points:
            continue
        drawn = {arm: draws[arm][metric] - draws[control][metric] for arm in ("student", "teacher")}
        low, high = interval(drawn["teacher"])
        if low <= 0 <= high:
            found[control] = None
            continue
        base, teacher, student = (points[arm][metric][0] for arm in (control, "teacher", "student"))
        usable = drawn["teacher"] != 0  # the interval excludes 0, so hardly a resample is lost
        found[control] = {
            "value": float((student - base) / (teacher - base)),
            "ci95": list(interval(drawn["student"][usable] / drawn["teacher"][usable])),
        }
    return found
