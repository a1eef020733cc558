"""What came out in one sentence, and when it has paid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.recipe.values import public_name
from potstill.report.gather import RunReport
from potstill.report.numbers import count, percent, times
from potstill.report.wording import beside_teacher


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
    found = scores["paired"].get("student - teacher", {}).get("accuracy")
    parts = [beside_teacher(found, share=report.ratio("student", "teacher", "accuracy"))]
    if (smaller := report.ratio("teacher", "student", "parameters")) is not None:
        parts.append(f"is {times(smaller)} times smaller" if smaller >= 1 else "is not smaller")
    if (faster := report.ratio("student", "teacher", "prompts_per_second")) is not None:
        parts.append(f"answers {times(faster)} times as fast")
    said = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    mine, theirs = (report.arms[arm]["accuracy"] for arm in ("student", "teacher"))
    right = f"right on {percent(mine['value'])} of {count(mine['n'], 'test prompt')}"
    return f"{said}: {right}, the teacher on {percent(theirs['value'])}."


def earned_back(report: RunReport) -> int | None:
    """After how many answers the run's time has been saved; None where it never is or is not known."""
    seconds, each = ((report.scores or {}).get("cost") or {}).get("seconds"), report.seconds_per_1000_answers
    saved = each.get("teacher_seconds", 0.0) - each.get("student_seconds", 0.0)
    return max(100, 100 * round(10 * seconds / saved)) if saved > 0 and seconds else None
