"""The tables of the report, and what they allow to say. Cells hold text, never HTML."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from potstill.records import Prompt, Verdict
from potstill.report.data import ReportData, clean
from potstill.report.wording import (
    DASH,
    EFFORT,
    QUALITY,
    Claim,
    Metric,
    arm_name,
    arms_in_order,
    claim,
    duration,
    interval,
    percent,
    percent_bare,
    verdict,
)

LONGEST_PROMPT = 700
SHOWN = 12
SHOWN_PER_REASON = 5
VERDICT_WORDS = {"better": "yes", "worse": "no", "unclear": "not distinguishable"}


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    small: str = ""
    kind: Literal["", "number", "prompt", "good", "bad"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    columns: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]


def number(text: str, small: str = "") -> Cell:
    return Cell(text, small, "number")


def arms_table(data: ReportData, metrics: Sequence[Metric]) -> Table:
    """One row an arm, one column a metric that at least one arm has."""
    shown = [m for m in metrics if any(m.key in scores for scores in data.arms.values())]
    rows = [
        [Cell(arm_name(arm).label, arm_name(arm).note), *(_score(data, arm, m) for m in shown)]
        for arm in arms_in_order(data.arms)
    ]
    return Table(columns=[Cell("Arm"), *(number(m.label) for m in shown)], rows=rows)


def quality(data: ReportData) -> Table:
    return arms_table(data, QUALITY)


def effort(data: ReportData) -> Table:
    return arms_table(data, EFFORT)


def differences(paired: Mapping[str, Mapping[str, Any]], candidates: Sequence[Metric]) -> Table:
    """The student's paired differences in the metrics that there are, and whether it is better in the first."""
    metrics = [m for m in candidates if any(m.key in d for d in paired.values())]
    first = candidates[0]
    rows: list[list[Cell]] = []
    for name, found in paired.items():
        cells = [
            number(m.bare(found[m.key]["value"]), m.interval(found[m.key])) if m.key in found else number(DASH)
            for m in metrics
        ]
        more = VERDICT_WORDS[verdict(found[first.key])] if first.key in found else DASH
        rows.append([Cell(f"Student − {arm_name(compared(name)).label}"), *cells, Cell(more)])
    units = {"accuracy": "points", "agreement": "points", "pass_rate": "points", "kl_to_teacher": "nats"}
    heads = [number(m.label, units.get(m.key, "")) for m in metrics]
    return Table(
        columns=[Cell("Difference"), *heads, Cell(f"Is the student's {first.label.lower()} higher?")], rows=rows
    )


def compared(paired_name: str) -> str:
    """ "student - floor" -> "floor"."""
    return paired_name.removeprefix("student - ")


def claims(data: ReportData) -> list[Claim]:
    """What the paired intervals allow to say of the student's accuracy."""
    return [
        claim(arm_name(compared(name)).spoken, found["accuracy"])
        for name, found in data.scores["paired"].items()
        if "accuracy" in found
    ]


def gaps(recovered: Mapping[str, Mapping[str, Any] | None]) -> Table:
    """The rows of scores.json's `gap_recovered`."""
    rows: list[list[Cell]] = []
    for control, gap in recovered.items():
        if gap is None:
            why = f"undefined: {arm_name(control).spoken} is not distinguishable from the teacher"
            rows.append([Cell(arm_name(control).label), number(DASH), Cell(why)])
        else:
            cell = number(percent(gap["value"]), interval(gap["ci95"], percent_bare))
            rows.append(
                [
                    Cell(arm_name(control).label),
                    cell,
                    Cell(f"from {arm_name(control).spoken} to the teacher"),
                ]
            )
    return Table(columns=[Cell("Control"), number("Gap recovered"), Cell("Of which gap")], rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A test prompt with what teacher and student make of it."""

    prompt: Prompt
    teacher_p: tuple[float, ...]
    student_p: tuple[float, ...]

    @property
    def teacher(self) -> int:
        return self.teacher_p.index(max(self.teacher_p))

    @property
    def student(self) -> int:
        return self.student_p.index(max(self.student_p))

    @property
    def confidence(self) -> float:
        """Of the less confident of the two."""
        return min(max(self.teacher_p), max(self.student_p))


def judged(data: ReportData) -> list[Judged]:
    """Test prompts that teacher and student answered, the most confident first."""
    teacher, student = (data.predictions.get(arm, {}) for arm in ("teacher", "student"))
    both = [
        Judged(
            prompt=data.prompts[i],
            teacher_p=tuple(np.exp(teacher[i]).tolist()),
            student_p=tuple(np.exp(student[i]).tolist()),
        )
        for i in student
        if i in teacher
    ]
    return sorted(both, key=lambda row: (-row.confidence, row.prompt.id))


def disagreements(rows: Sequence[Judged], choices: Sequence[str]) -> Table:
    return _judged_table([row for row in rows if row.teacher != row.student][:SHOWN], choices)


def both_wrong(rows: Sequence[Judged], choices: Sequence[str]) -> Table:
    wrong = [
        row
        for row in rows
        if row.prompt.reference in choices and row.prompt.reference not in (choices[row.teacher], choices[row.student])
    ]
    return _judged_table(wrong[:SHOWN], choices)


def sides(rows: Sequence[Judged], choices: Sequence[str]) -> dict[str, int]:
    """Over the disagreements: with whom the person sides, where there is one."""
    apart = [row for row in rows if row.teacher != row.student]
    known = sum(row.prompt.reference is not None for row in apart)
    teacher = sum(row.prompt.reference == choices[row.teacher] for row in apart)
    student = sum(row.prompt.reference == choices[row.student] for row in apart)
    return {
        "all": len(apart),
        "teacher": teacher,
        "student": student,
        "neither": known - teacher - student,
    }


def reasons(data: ReportData) -> Table:
    """Verdicts by reason, and how often the teacher's answer is a person's, where one is known."""
    by_reason: dict[str, list[Verdict]] = {}
    for found in data.verdicts.values():
        by_reason.setdefault(found.reason, []).append(found)
    known = any(data.prompts[i].reference is not None for i in data.verdicts if i in data.prompts)
    rows: list[list[Cell]] = []
    for reason, group in sorted(by_reason.items(), key=lambda item: (item[0] != "accepted", -len(item[1]))):
        sure = sum(found.confidence for found in group) / len(group)
        cells = [
            Cell(reason),
            number(f"{len(group):,}"),
            number(percent(len(group) / len(data.verdicts))),
            number(percent(sure)),
        ]
        rows.append([*cells, _agrees_with_people(data, group)] if known else cells)
    heads = [Cell("Verdict"), number("Answers"), number("Share"), number("Mean confidence")]
    if known:
        heads.append(number("Agrees with people"))
    return Table(columns=heads, rows=rows)


def teacher_answers(data: ReportData, *, accepted: bool) -> Table:
    """A few of the teacher's answers, drawn by the recipe's seed, up to five a reason."""
    by_reason: dict[str, list[Verdict]] = {}
    for prompt_id in sorted(data.verdicts):
        found = data.verdicts[prompt_id]
        if found.accepted == accepted and prompt_id in data.prompts:
            by_reason.setdefault(found.reason, []).append(found)
    drawn = random.Random(data.recipe.seed)
    rows = [
        [
            prompt_cell(data.prompts[found.prompt_id]),
            Cell(found.answer),
            number(percent(found.confidence)),
            *([] if accepted else [Cell(found.reason)]),
        ]
        for group in by_reason.values()
        for found in drawn.sample(group, min(SHOWN_PER_REASON, len(group)))
    ]
    heads = [Cell("Training prompt"), Cell("Teacher's answer"), number("Confidence")]
    return Table(columns=heads if accepted else [*heads, Cell("Why rejected")], rows=rows)


def left_out(data: ReportData) -> Table:
    counts = [(reason, n) for reason, n in data.left_out.items() if n]
    rows = [[Cell(f"left out: {reason}"), number(f"{n:,}")] for reason, n in sorted(counts, key=lambda item: -item[1])]
    splits = Counter(prompt.split for prompt in data.prompts.values())
    used = [[Cell(f"used to {what}"), number(f"{splits[split]:,}")] for split, what in _USES.items()]
    return Table(columns=[Cell("Prompts"), number("Count")], rows=[*used, *(rows or [_NONE_LEFT_OUT])])


_NONE_LEFT_OUT = [Cell("left out"), number("0")]
_USES: Mapping[Literal["train", "validation", "test"], str] = {
    "train": "train",
    "validation": "validate while training and to fit the teacher's temperature",
    "test": "test",
}


def times(data: ReportData) -> Table:
    """Stages with their parts beneath, and each stage's share of the whole."""
    seconds = data.stage_seconds
    totals: dict[str, float] = {}
    for name, took in seconds.items():
        stage = name.partition(":")[0]
        if stage not in seconds:
            totals[stage] = totals.get(stage, 0.0) + took
        elif name == stage:
            totals[stage] = took
    whole = sum(totals.values()) or 1.0
    rows: list[list[Cell]] = []
    for stage, took in totals.items():
        rows.append([Cell(stage), number(duration(took)), number(percent(took / whole))])
        parts = [(n, s) for n, s in seconds.items() if n.startswith(f"{stage}:")]
        rows += [
            [Cell("", n.partition(":")[2]), number("", duration(s)), number("", percent(s / whole))] for n, s in parts
        ]
    rows.append([Cell("all"), number(duration(sum(totals.values()))), number("")])
    return Table(columns=[Cell("Stage"), number("Time"), number("Share")], rows=rows)


def prompt_cell(prompt: Prompt) -> Cell:
    text = clean(prompt.text)
    return Cell(text if len(text) <= LONGEST_PROMPT else f"{text[:LONGEST_PROMPT]} […]", kind="prompt")


def _score(data: ReportData, arm: str, metric: Metric) -> Cell:
    score = data.arms[arm].get(metric.key)
    return number(DASH) if score is None else number(metric.write(score["value"]), metric.interval(score))


def _judged_table(rows: Sequence[Judged], choices: Sequence[str]) -> Table:
    heads = [Cell("Test prompt"), Cell("Teacher"), Cell("Student"), Cell("A person said")]
    cells = [
        [
            prompt_cell(row.prompt),
            _said(choices[row.teacher], max(row.teacher_p), row.prompt.reference),
            _said(choices[row.student], max(row.student_p), row.prompt.reference),
            Cell(
                "not known" if row.prompt.reference is None else row.prompt.reference,
                _grade(row.prompt),
            ),
        ]
        for row in rows
    ]
    return Table(columns=heads, rows=cells)


def _said(answer: str, p: float, reference: str | None) -> Cell:
    if reference is None:
        return Cell(answer, percent(p))
    return Cell(answer, percent(p), "good" if answer == reference else "bad")


def _grade(prompt: Prompt) -> str:
    return "" if prompt.grade is None else f"rating {prompt.grade:+.2f}".replace("-", "−")


def _agrees_with_people(data: ReportData, group: Sequence[Verdict]) -> Cell:
    known = [
        found.answer == prompt.reference
        for found in group
        if (prompt := data.prompts.get(found.prompt_id)) and prompt.reference is not None
    ]
    return number(percent(sum(known) / len(known)) if known else DASH)
