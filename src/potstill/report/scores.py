"""What the evaluation found: every arm's scores, the student's differences, the gap it closed, what was wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.report.gather import RunReport
from potstill.report.numbers import DASH, count, interval, percent
from potstill.report.tables import Cell, Table, number
from potstill.report.wording import EFFORT, ArmName, Claim, Metric, claim, quality, verdict

_MOST_REASONS = 20
_VERDICT_WORDS = {"better": "yes", "worse": "no", "unclear": "not distinguishable"}


@dataclass(frozen=True, slots=True)
class Dot:
    """An accuracy with its interval; `at`, `low` and `high` in per cent of the axis."""

    label: str
    note: str
    value: str
    interval: str
    at: float
    low: float
    high: float
    colour: str
    marked: bool


@dataclass(frozen=True, slots=True)
class Dots:
    """`ends`: what the axis begins with, its middle and its end, in per cent."""

    ends: tuple[float, float, float]
    rows: Sequence[Dot]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresPart:
    prompts: int
    dots: Dots
    good: Table
    heavy: Table | None
    terms: Sequence[Metric]
    missing: Sequence[str]


def scores_part(report: RunReport) -> ScoresPart | None:
    if report.scores is None:
        return None
    metrics = quality(report.recipe.task)
    shown = [metric for metric in (*metrics, *EFFORT) if any(metric.key in found for found in report.arms.values())]
    return ScoresPart(
        prompts=report.arms["student"]["accuracy"]["n"],
        dots=_dots(report),
        good=_arms_table(report, [metric for metric in shown if metric in metrics]),
        heavy=_arms_table(report, heavy) if (heavy := [metric for metric in shown if metric in EFFORT]) else None,
        terms=shown,
        missing=[report.name(arm).label for arm in report.trained if arm not in report.arms],
    )


def _dots(report: RunReport) -> Dots:
    """Every arm's accuracy, on an axis of round ends that holds all of them."""
    rows = [(arm, report.name(arm), found["accuracy"]) for arm, found in report.arms.items()]
    if majority := (report.scores or {}).get("majority"):
        name = ArmName("Constant answer", f"“{majority['answer']}” to every prompt", "", "#8a8f98")
        rows.append(("", name, {"value": majority["accuracy"], "ci95": None}))
    ends = [end for _, _, score in rows for end in (score["value"], *(score["ci95"] or ()))]
    low, high = math.floor(10 * min(ends)) / 10, math.ceil(10 * max(ends)) / 10
    high = max(high, low + 0.1)

    def place(share: float) -> float:
        return 100 * (share - low) / (high - low)

    dots: list[Dot] = []
    for arm, name, score in rows:
        at, ci95 = score["value"], score["ci95"] or (score["value"],) * 2
        middle, left, right = map(place, (at, *ci95))
        said = interval(score["ci95"]) or DASH
        dots.append(
            Dot(name.label, name.note, percent(at), said, middle, left, right, name.colour, marked=arm == "student")
        )
    return Dots((100 * low, 50 * (low + high), 100 * high), dots)


def _arms_table(report: RunReport, metrics: Sequence[Metric]) -> Table:
    """A row per arm, a column per metric."""
    rows = [
        [Cell(report.name(arm).label), *(_score(found, metric) for metric in metrics)]
        for arm, found in report.arms.items()
    ]
    marked = list(report.arms).index("student")
    return Table(columns=[Cell("Arm"), *(number(metric.label) for metric in metrics)], rows=rows, marked=marked)


def _score(found: Mapping[str, Mapping[str, Any]], metric: Metric) -> Cell:
    score = found.get(metric.key)
    return number(DASH) if score is None else number(metric.write(score["value"]), metric.interval(score))


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferencesPart:
    """`outcomes`: test prompts by who was right, all that the paired difference in accuracy is made of."""

    differences: Table
    outcomes: Table | None
    gaps: Table | None


def differences_part(report: RunReport) -> DifferencesPart | None:
    if not _paired(report):
        return None
    return DifferencesPart(differences=_differences(report), outcomes=_outcomes(report), gaps=_gaps(report))


def _paired(report: RunReport) -> dict[str, Mapping[str, Any]]:
    """The arms that the student is compared with, and its differences to them."""
    found: Mapping[str, Any] = (report.scores or {}).get("paired", {})
    return {name.removeprefix("student - "): differences for name, differences in found.items()}


def claims(report: RunReport) -> list[Claim]:
    """What the paired intervals allow to say of the student's accuracy."""
    return [
        claim(report.name(arm).spoken, found["accuracy"])
        for arm, found in _paired(report).items()
        if "accuracy" in found
    ]


def _differences(report: RunReport) -> Table:
    paired = _paired(report)
    metrics = [m for m in quality(report.recipe.task) if any(m.key in found for found in paired.values())]
    rows: list[list[Cell]] = []
    for arm, found in paired.items():
        cells = [
            number(m.bare(found[m.key]["value"]), m.interval(found[m.key])) if m.key in found else number(DASH)
            for m in metrics
        ]
        more = _VERDICT_WORDS[verdict(found["accuracy"])] if "accuracy" in found else DASH
        rows.append([Cell(f"Student − {report.name(arm).label}"), *cells, Cell(more)])
    heads = [number(m.label, m.unit) for m in metrics]
    return Table(columns=[Cell("Difference"), *heads, Cell("Is the student's accuracy higher?")], rows=rows)


def _outcomes(report: RunReport) -> Table | None:
    if report.outcomes is None:
        return None
    seen = report.outcomes.count
    rows = [
        [
            Cell(f"Student {'right' if mine else 'wrong'}"),
            *(number(f"{seen[mine, theirs]:,}") for theirs in (True, False)),
        ]
        for mine in (True, False)
    ]
    return Table(columns=[Cell("Test prompts"), number("Teacher right"), number("Teacher wrong")], rows=rows)


def _gaps(report: RunReport) -> Table | None:
    recovered: Mapping[str, Any] = (report.scores or {}).get("gap_recovered", {})
    rows: list[list[Cell]] = []
    for control, gap in recovered.items():
        name = report.name(control)
        if gap is None:
            why = f"undefined: {name.spoken} is not distinguishable from the teacher"
            rows.append([Cell(name.label), number(DASH), Cell(why)])
        else:
            cell = number(percent(gap["value"]), interval(gap["ci95"]))
            rows.append([Cell(name.label), cell, Cell(f"from {name.spoken} to the teacher")])
    columns = [Cell("Control"), number("Gap recovered"), Cell("Of which gap")]
    return Table(columns=columns, rows=rows) if rows else None


def mistakes(report: RunReport) -> Table | None:
    """What was wrong with whose answers, what the student does most first."""
    wrong: Mapping[str, Mapping[str, int]] = (report.scores or {}).get("wrong", {})
    arms = [arm for arm in report.arms if arm in wrong]
    if "student" not in arms:
        return None
    order = sorted(
        {reason: None for arm in ("student", *arms) for reason in wrong[arm]},
        key=lambda reason: (-wrong["student"].get(reason, 0), -sum(wrong[arm].get(reason, 0) for arm in arms)),
    )
    rows = [[Cell(reason), *(number(f"{wrong[arm].get(reason, 0):,}") for arm in arms)] for reason in order]
    if rest := order[_MOST_REASONS:]:
        left = [number(f"{sum(wrong[arm].get(reason, 0) for reason in rest):,}") for arm in arms]
        rows[_MOST_REASONS:] = [[Cell(count(len(rest), "other reason")), *left]]
    right = (report.arms[arm]["accuracy"] for arm in arms)
    rows.append([Cell("right"), *(number(f"{round(score['value'] * score['n']):,}") for score in right)])
    return Table(columns=[Cell("What was wrong"), *(number(report.name(arm).label) for arm in arms)], rows=rows)
