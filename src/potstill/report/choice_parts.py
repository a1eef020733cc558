"""The sections that only tasks with a few allowed answers have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from potstill.records import Prompt
from potstill.report.charts import Axes, Block, Chart, Line, Mark
from potstill.report.choices import BINS, Answered, Label, Labels, Tested
from potstill.report.clean import clean
from potstill.report.gather import RunReport
from potstill.report.numbers import DASH, minus, percent, three_decimals
from potstill.report.tables import Cell, Table, number
from potstill.report.wording import ArmName, probabilities_had

_LONGEST_PROMPT = 700
_SHOWN = 12
_KEPT, _NOT_KEPT = "#4a86b8", "#cc6633"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsPart:
    """Accepted and rejected answers of the teacher."""

    answers: int
    had: str
    reasons: Table
    confidence: Chart | None
    rejected: Table
    accepted: Table


def labels_part(report: RunReport) -> LabelsPart | None:
    if (labels := report.labels) is None:
        return None
    return LabelsPart(
        answers=sum(reason.answers for reason in labels.reasons.values()),
        had=probabilities_had(report.recipe),
        reasons=_reasons(labels),
        confidence=_confidence(labels),
        rejected=_teacher_answers([label for label in labels.shown if not label.kept]),
        accepted=_teacher_answers([label for label in labels.shown if label.kept]),
    )


def _reasons(labels: Labels) -> Table:
    """Verdicts, and how often the teacher's answer is a person's, where one is known."""
    total = sum(reason.answers for reason in labels.reasons.values())
    people = any(reason.asked for reason in labels.reasons.values())
    rows: list[list[Cell]] = []
    for why, reason in sorted(labels.reasons.items(), key=lambda item: (not item[1].kept, -item[1].answers)):
        sure = percent(reason.confidence / reason.known) if reason.known else DASH
        cells = [Cell(why), number(f"{reason.answers:,}"), number(percent(reason.answers / total)), number(sure)]
        agree = number(percent(reason.agree / reason.asked) if reason.asked else DASH)
        rows.append([*cells, agree] if people else cells)
    heads = [Cell("Verdict"), number("Answers"), number("Share"), number("Mean confidence")]
    return Table(columns=[*heads, number("Agrees with people")] if people else heads, rows=rows)


def _teacher_answers(labels: Sequence[Label]) -> Table:
    """A few; with the reason where they were rejected."""
    heads = [Cell("Training prompt"), Cell("Teacher's answer"), number("Confidence")]
    rows = [
        [
            _prompt(label.prompt),
            Cell(label.answer or DASH),
            number(DASH if label.confidence is None else percent(label.confidence)),
            *([] if label.kept else [Cell(label.reason)]),
        ]
        for label in labels
    ]
    rejected = any(not label.kept for label in labels)
    return Table(columns=[*heads, Cell("Why rejected")] if rejected else heads, rows=rows)


def _confidence(labels: Labels) -> Chart | None:
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


@dataclass(frozen=True, slots=True)
class CalibrationPart:
    reliability: Chart
    note: str


def calibration_part(report: RunReport) -> CalibrationPart | None:
    if report.tested is None or (chart := _reliability(report, report.tested)) is None:
        return None
    note, found = "", (report.scores or {}).get("calibration")
    if found:
        biases = zip(report.tested.choices, found["bias"], strict=True)
        said = ", ".join(f"{choice} {three_decimals(bias)}" for choice, bias in biases)
        note = (
            f"Teacher calibration: temperature {three_decimals(found['temperature'])}; bias {said} (nats, added before "
            "the temperature)."
        )
    return CalibrationPart(chart, note)


def _reliability(report: RunReport, tested: Tested) -> Chart | None:
    """How often an arm was right when it said that it was x % sure."""
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
class DisagreementsPart:
    """`apart`: test prompts of `prompts` on which teacher and student differ; with whom the person sides there."""

    prompts: int
    apart: int
    with_teacher: int
    with_student: int
    with_neither: int
    differing: Table
    both_wrong: Table


def disagreements_part(report: RunReport) -> DisagreementsPart | None:
    if report.tested is None:
        return None
    return disagreements(report.tested.answers(), report.tested.choices)


def disagreements(answers: Sequence[Answered], choices: Sequence[str]) -> DisagreementsPart:
    apart = [one for one in answers if one.teacher != one.student]
    known = [one for one in apart if one.prompt.reference is not None]
    teacher = sum(one.prompt.reference == choices[one.teacher] for one in known)
    student = sum(one.prompt.reference == choices[one.student] for one in known)
    wrong = [
        one
        for one in answers
        if one.prompt.reference in choices and one.prompt.reference not in (choices[one.teacher], choices[one.student])
    ]
    return DisagreementsPart(
        prompts=len(answers),
        apart=len(apart),
        with_teacher=teacher,
        with_student=student,
        with_neither=len(known) - teacher - student,
        differing=_answered(apart[:_SHOWN], choices),
        both_wrong=_answered(wrong[:_SHOWN], choices),
    )


def _answered(answers: Sequence[Answered], choices: Sequence[str]) -> Table:
    rows = [
        [
            _prompt(one.prompt),
            _said(choices[one.teacher], max(one.teacher_p), one.prompt.reference),
            _said(choices[one.student], max(one.student_p), one.prompt.reference),
            Cell(one.prompt.reference or "not known", _grade(one.prompt)),
        ]
        for one in answers
    ]
    return Table(columns=[Cell("Test prompt"), Cell("Teacher"), Cell("Student"), Cell("A person said")], rows=rows)


def _prompt(prompt: Prompt) -> Cell:
    text = clean(prompt.text[: 2 * _LONGEST_PROMPT])
    return Cell(text if len(text) <= _LONGEST_PROMPT else f"{text[:_LONGEST_PROMPT]} […]", kind="prompt")


def _said(answer: str, p: float, reference: str | None) -> Cell:
    if reference is None:
        return Cell(answer, percent(p))
    return Cell(answer, percent(p), "good" if answer == reference else "bad")


def _grade(prompt: Prompt) -> str:
    return "" if prompt.grade is None else f"rating {minus(f'{prompt.grade:+.2f}')}"
