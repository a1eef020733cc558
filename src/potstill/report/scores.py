"""What came out: the headline, every arm's accuracy, the student's differences, what was wrong, when it has paid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.recipe.values import public_name
from potstill.report.gather import RunReport
from potstill.report.numbers import count, percent, times
from potstill.report.wording import ANSWERS_ALONE, ArmName, Claim, beside_teacher, claim, verdict

_MOST_REASONS = 20


def headline(report: RunReport) -> str:
    """In one sentence, what came out: of the test set only what the paired interval allows."""
    teacher = public_name(report.recipe.teacher.model)
    if report.scores is not None:
        return _scored(report, report.scores)
    if "student" in report.trained:
        learned = count(report.trained["student"]["examples"], "answer")
        return f"A student has learned from {learned} by {teacher}; it was not evaluated yet."
    if report.tally is not None:
        return f"{report.tally.kept:,} of {count(report.tally.answers, 'answer')} by {teacher} were kept."
    if report.road is not None and report.road.answered:
        return f"{teacher} has written {count(report.road.answered, 'answer')}."
    return f"{teacher} has written nothing yet."


def _scored(report: RunReport, scores: Mapping[str, Any]) -> str:
    """What the saved model does on its own comes before what its probabilities would allow, and a baseline that costs
    nothing is not left out."""
    alone = report.value("student", "exact_answers")
    if alone is not None and alone < ANSWERS_ALONE:
        writes = f"what it writes is an allowed answer and ends for {percent(alone)} of the prompts tried"
        return f"The student does not answer on its own: {writes}. By its probabilities alone it is {_right(report)}."
    return _compared(report, scores) + _free(report, scores)


def _free(report: RunReport, scores: Mapping[str, Any]) -> str:
    found = scores["paired"].get("student - tfidf", {}).get("accuracy")
    if found is None or verdict(found) == "better":
        return ""
    name, value = report.name("tfidf").spoken, report.arms["tfidf"]["accuracy"]["value"]
    beside = "is better" if verdict(found) == "worse" else "may be as good"
    return f" {name}, which costs nothing, is right on {percent(value)} and {beside}."


def _compared(report: RunReport, scores: Mapping[str, Any]) -> str:
    found = scores["paired"].get("student - teacher", {}).get("accuracy")
    parts = [beside_teacher(found, share=report.ratio("student", "teacher", "accuracy"))]
    if (smaller := report.ratio("teacher", "student", "parameters")) is not None:
        parts.append(f"is {times(smaller)} times smaller" if smaller >= 1 else "is not smaller")
    if (faster := report.ratio("student", "teacher", "prompts_per_second")) is not None:
        parts.append(f"answers {times(faster)} times as fast")
    said = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{said}: {_right(report)}."


def _right(report: RunReport) -> str:
    mine, theirs = (report.arms[arm]["accuracy"] for arm in ("student", "teacher"))
    right = f"right on {percent(mine['value'])} of {count(mine['n'], 'test prompt')}"
    return f"{right}, the teacher on {percent(theirs['value'])}"


def earned_back(report: RunReport) -> int | None:
    """After how many answers the run's time has been saved; None where it never is or is not known."""
    seconds, each = ((report.scores or {}).get("cost") or {}).get("seconds"), report.seconds_per_1000_answers
    saved = each.get("teacher_seconds", 0.0) - each.get("student_seconds", 0.0)
    return max(100, 100 * round(10 * seconds / saved)) if saved > 0 and seconds else None


@dataclass(frozen=True, slots=True)
class Accuracies:
    """(arm, its name, its accuracy) on an axis of round ends that holds all of them."""

    rows: Sequence[tuple[str, ArmName, Mapping[str, Any]]]
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float, float]:
        """What the axis begins with, its middle and its end, in per cent."""
        return (100 * self.low, 50 * (self.low + self.high), 100 * self.high)

    def place(self, share: float) -> float:
        """In per cent of the axis."""
        return 100 * (share - self.low) / (self.high - self.low)


def accuracies(report: RunReport) -> Accuracies:
    """Of every arm, and of a constant answer where the scores tell it."""
    rows = [(arm, report.name(arm), found["accuracy"]) for arm, found in report.arms.items()]
    if majority := (report.scores or {}).get("majority"):
        name = ArmName("Constant answer", f"“{majority['answer']}” to every prompt", "", "#8a8f98")
        rows.append(("", name, {"value": majority["accuracy"], "ci95": None}))
    ends = [end for _, _, score in rows for end in (score["value"], *(score["ci95"] or ()))]
    low, high = math.floor(10 * min(ends)) / 10, math.ceil(10 * max(ends)) / 10
    return Accuracies(rows, low, max(high, low + 0.1))


def differences(report: RunReport) -> dict[str, Mapping[str, Any]]:
    """The student's to every arm that it is compared with, by metric."""
    found: Mapping[str, Any] = (report.scores or {}).get("paired", {})
    return {name.removeprefix("student - "): metrics for name, metrics in found.items()}


def claims(report: RunReport) -> list[Claim]:
    """What the paired intervals allow to say of the student's accuracy."""
    return [
        claim(report.name(arm).spoken, found["accuracy"])
        for arm, found in differences(report).items()
        if "accuracy" in found
    ]


def mistakes(report: RunReport) -> tuple[list[str], list[tuple[str, list[int]]]] | None:
    """The arms' labels; how often what was wrong with the answers of each, what the student does most first."""
    wrong: Mapping[str, Mapping[str, int]] = (report.scores or {}).get("wrong", {})
    arms = [arm for arm in report.arms if arm in wrong]
    if "student" not in arms:
        return None
    order = sorted(
        {reason: None for arm in ("student", *arms) for reason in wrong[arm]},
        key=lambda reason: (-wrong["student"].get(reason, 0), -sum(wrong[arm].get(reason, 0) for arm in arms)),
    )
    rows = [(reason, [wrong[arm].get(reason, 0) for arm in arms]) for reason in order]
    if rest := rows[_MOST_REASONS:]:
        sums = [sum(counts) for counts in zip(*(counts for _, counts in rest), strict=True)]
        rows[_MOST_REASONS:] = [(count(len(rest), "other reason"), sums)]
    right = [report.arms[arm]["accuracy"] for arm in arms]
    rows.append(("right", [round(score["value"] * score["n"]) for score in right]))
    return [report.name(arm).label for arm in arms], rows
