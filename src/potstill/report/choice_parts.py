"""Charts of tasks with a few allowed answers, and where teacher and student disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from potstill.report.charts import Axes, Block, Chart, Line, Mark
from potstill.report.choices import BINS, Answered, Labels
from potstill.report.gather import RunReport
from potstill.report.numbers import percent
from potstill.report.wording import ArmName

_KEPT, _NOT_KEPT = "#4a86b8", "#cc6633"


def confidence_chart(labels: Labels) -> Chart | None:
    """The teacher's confidence in its answers to the training prompts, accepted ones below rejected ones."""
    accepted, rejected = labels.bins[True], labels.bins[False]
    if not (bins := accepted.keys() | rejected.keys()):
        return None
    axes = Axes(min(bins) / BINS, 1.0, 0.0, 1.05 * max(accepted[at] + rejected[at] for at in bins))
    width = 0.9 * (axes.x(1 / BINS) - axes.x(0))
    blocks: list[Block] = []
    for at in sorted(bins):
        below = 0
        for n, word, colour in ((accepted[at], "accepted", _KEPT), (rejected[at], "rejected", _NOT_KEPT)):
            if n:
                title = f"{n:,} {word} at {100 * at / BINS:g} to {100 * (at + 1) / BINS:g} %"
                top, height = axes.y(below + n), axes.y(below) - axes.y(below + n)
                blocks.append(Block(axes.x((at + 0.05) / BINS), top, width, height, colour, title))
            below += n
    return Chart(
        says="The teacher's answers to training prompts by its confidence in them.",
        across=axes.across("\u00a0%", times=100),
        up=axes.up(),
        key=[("accepted", _KEPT), ("rejected", _NOT_KEPT)],
        blocks=blocks,
    )


def reliability_chart(report: RunReport) -> Chart | None:
    """How often an arm was right when it said that it was x % sure."""
    if (tested := report.tested) is None:
        return None
    from potstill.evaluate.metrics import calibration_bins  # scipy takes seconds

    least = 1 / len(tested.choices)
    axes = Axes(least, 1.0, 0.0, 1.02)
    lines: list[Line] = []
    for arm in ("teacher_raw", "teacher", "student"):
        if not (right := tested.right(arm)):
            continue
        p_NC = np.array([tested.p[arm][i] for i in right])
        rows = calibration_bins(p_NC, np.array(list(right.values()), dtype=np.float64))
        lines.append(_confidence_line(report.name(arm), report.value(arm, "ece"), rows, len(right), axes))
    if not lines:
        return None
    honest = Line(
        label="honest confidence",
        colour="#8a8f98",
        points=axes.points([(least, least), (1, 1)]),
        title="honest",
        dashed=True,
    )
    return Chart(
        says="How often an answer is right (up), by how confident the model was (across), test prompts.",
        across=axes.across("\u00a0%", times=100),
        up=axes.up("\u00a0%", times=100),
        key=[(line.label, line.colour) for line in (*lines, honest)],
        lines=[honest, *lines],
    )


def _confidence_line(
    name: ArmName, ece: float | None, rows: Sequence[Mapping[str, float]], answers: int, axes: Axes
) -> Line:
    """One arm's bins; the more of its `answers` lie in one, the larger its mark."""
    marks = [
        Mark(
            axes.x(row["confidence"]),
            axes.y(row["accuracy"]),
            f"{name.label}: {percent(row['confidence'])} sure, right {percent(row['accuracy'])} of {row['n']:,.0f}",
            6 + 22 * (row["n"] / answers) ** 0.5,
        )
        for row in rows
    ]
    return Line(
        label=name.label if ece is None else f"{name.label}, ECE {percent(ece)}",
        colour=name.colour,
        points=axes.points((row["confidence"], row["accuracy"]) for row in rows),
        title=name.label,
        marks=marks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreements:
    """Of `prompts` test prompts those on which teacher and student differ, with whom the person sides there, and those
    on which both contradict the person."""

    prompts: int
    apart: Sequence[Answered]
    with_teacher: int
    with_student: int
    with_neither: int
    both_wrong: Sequence[Answered]


def disagreements(answers: Sequence[Answered], choices: Sequence[str]) -> Disagreements:
    apart = [one for one in answers if one.teacher != one.student]
    known = [one for one in apart if one.prompt.reference is not None]
    teacher = sum(one.prompt.reference == choices[one.teacher] for one in known)
    student = sum(one.prompt.reference == choices[one.student] for one in known)
    return Disagreements(
        prompts=len(answers),
        apart=apart,
        with_teacher=teacher,
        with_student=student,
        with_neither=len(known) - teacher - student,
        both_wrong=[
            one
            for one in answers
            if one.prompt.reference in choices
            and one.prompt.reference not in (choices[one.teacher], choices[one.student])
        ],
    )
