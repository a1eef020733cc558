"""From the arms' answers to the `arms`, `paired` and `gap_recovered` of scores.json."""

from __future__ import annotations

from collections.abc import Mapping
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
"""Arm -> metric -> its value on the prompts as they are, and then on every resample of them (1 + B,)."""

_PAIRED = ("accuracy", "agreement", "kl_to_teacher")


def score_arms(arms: Mapping[str, Answers], *, count: int, seed: int) -> tuple[Scores, dict[str, Any], dict[str, Any]]:
    """Scores of every arm with 95 % intervals; the student's paired differences to the others; the share of the gap
    between each control and the teacher that the student closed."""
    n = len(next(iter(arms.values())).reference_N)
    rows_BN = _drawn(n, count=count, seed=seed)
    return _compared({arm: _metrics(answers, rows_BN) for arm, answers in arms.items()}, n)


def score_texts(
    passed: Mapping[str, Mapping[str, bool]], *, count: int, seed: int
) -> tuple[Scores, dict[str, Any], dict[str, Any]]:
    """The same of arms that write, from which prompts each answered rightly."""
    ids = list(passed["teacher"])
    rows_BN = _drawn(len(ids), count=count, seed=seed)
    right = {arm: np.array([said[i] for i in ids], dtype=np.float64) for arm, said in passed.items()}
    return _compared({arm: {"accuracy": right_N[rows_BN].mean(axis=-1)} for arm, right_N in right.items()}, len(ids))


def _drawn(n: int, *, count: int, seed: int) -> Ints:
    """The prompts as they are, and resamples of them."""
    return np.concatenate([np.arange(n)[None, :], resamples(n, count=count, seed=seed)])


def _compared(metrics: Metrics, n: int) -> tuple[Scores, dict[str, Any], dict[str, Any]]:
    scores = {
        arm: {m: Score(value=float(v[0]), n=n, ci95=interval(v[1:])) for m, v in found.items()}
        for arm, found in metrics.items()
    }
    return scores, _paired(metrics), _gaps(metrics, "accuracy")


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


def _paired(metrics: Metrics) -> dict[str, Any]:
    """The student less every other arm."""
    student = metrics.get("student", {})
    return {
        f"student - {arm}": {m: _with_interval(student[m] - found[m]) for m in _PAIRED if m in found}
        for arm, found in metrics.items()
        if student and arm != "student"
    }


def _gaps(metrics: Metrics, metric: str) -> dict[str, Any]:
    """(student - control) / (teacher - control), by joint resampling; null where the denominator's interval includes 0.
    It may exceed 1: checks add knowledge that the teacher alone lacks."""
    gaps: dict[str, Any] = {}
    for control in metrics:
        if control in ("student", "teacher", "teacher_raw") or "student" not in metrics:
            continue
        student, teacher = (metrics[arm][metric] - metrics[control][metric] for arm in ("student", "teacher"))
        low, high = interval(teacher[1:])
        usable = teacher != 0  # an interval that excludes 0 loses hardly a resample
        gaps[control] = None if low <= 0 <= high else _with_interval(student[usable] / teacher[usable])
    return gaps


def _with_interval(values: Array) -> dict[str, Any]:
    return {"value": float(values[0]), "ci95": list(interval(values[1:]))}
