"""Answers beside each other: accepted and rejected ones of one prompt, and those of all arms to a test prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potstill.records import Finding, Prompt, Sample, Verdict
from potstill.report.clean import clipped, titled
from potstill.report.numbers import count
from potstill.report.tally import Outcome, Tally, passes, rulings
from potstill.report.wording import ArmName
from potstill.store.requests import Requests
from potstill.store.run import RunFolder

_LONGEST_PROMPT = 2000
_LONGEST_ANSWER = 1200
_MOST_PER_COLUMN = 5
_OUTCOMES: Mapping[Outcome, str] = {
    (True, False): "only the student is right",
    (False, True): "only the teacher is right",
    (False, False): "both are wrong",
    (True, True): "both are right",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer, or several alike; `findings` are shown beneath it."""

    text: str
    good: bool
    fate: str
    findings: tuple[Finding, ...]
    alike: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    title: str
    answers: Sequence[Said]
    more: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A prompt with answers beside each other."""

    title: str
    note: str
    prompt: str
    reference: str
    columns: Sequence[Column]


def candidates(run: RunFolder, found: Tally, *, lenient: bool) -> list[Case]:
    """The prompts to show, with their answers by what the checks said of them."""
    ruled = rulings(run.verdicts, list(found.shown))
    asked: dict[str, tuple[Prompt, list[tuple[Sample, Verdict]]]] = {}
    with Requests(run.ledger) as requests:
        for prompt, sample in requests.samples(of=list(found.shown)):
            if ruling := ruled.get((prompt.id, sample.index)):
                asked.setdefault(prompt.id, (prompt, []))[1].append((sample, ruling))
    return [_candidate(*asked[i], lenient=lenient) for i in found.shown if i in asked]


def _candidate(prompt: Prompt, answers: Sequence[tuple[Sample, Verdict]], *, lenient: bool) -> Case:
    passed = [row for row in answers if passes(row[1], lenient=lenient)]
    failed = [row for row in answers if not passes(row[1], lenient=lenient)]
    kept = sum(ruling.kept for _, ruling in answers)
    return Case(
        title=titled(prompt.text),
        note=f"{len(passed)} of {len(answers)} passed, {kept} kept",
        prompt=_asked(prompt),
        reference="",
        columns=(
            _column("Accepted: passed every check", sorted(passed, key=lambda row: not row[1].kept), good=True),
            _column("Rejected: a check objected", failed, good=False),
        ),
    )


def _column(title: str, rows: Sequence[tuple[Sample, Verdict]], *, good: bool) -> Column:
    alike: dict[tuple[str, str, tuple[Finding, ...]], list[Verdict]] = {}
    for sample, ruling in rows:
        alike.setdefault((_answer(sample), _fate(ruling, good=good), ruling.findings), []).append(ruling)
    answers = [
        Said(text=text, good=good, fate=fate, findings=findings, alike=len(same))
        for (text, fate, findings), same in alike.items()
    ]
    hidden = sum(one.alike for one in answers[_MOST_PER_COLUMN:])
    return Column(title=title, answers=answers[:_MOST_PER_COLUMN], more=hidden)


def _fate(ruling: Verdict, *, good: bool) -> str:
    if ruling.kept:
        return "kept"
    return f"not kept: {ruling.reason}" if good else ruling.reason


def side_by_side(run: RunFolder, shown: Mapping[str, Outcome], names: Mapping[str, ArmName]) -> list[Case]:
    """The test prompts to show, with the answer of every arm of `names` and what spoke against it."""
    asked: dict[str, Prompt] = {}
    answers: dict[tuple[str, str], Said] = {}
    for arm in names:
        test = RunFolder(run.test(arm))
        ruled = rulings(test.verdicts, list(shown))
        with Requests(test.ledger) as requests:
            for prompt, sample in requests.samples(most=1, of=list(shown)):
                asked[prompt.id] = prompt
                if ruling := ruled.get((prompt.id, 0)):
                    said = Said(text=_answer(sample), good=ruling.kept, fate=ruling.reason, findings=ruling.findings)
                    answers[prompt.id, arm] = said
    nothing = Said(text="", good=False, fate="no answer", findings=())
    return [
        Case(
            title=titled(asked[i].text),
            note=_OUTCOMES[outcome],
            prompt=_asked(asked[i]),
            reference=clipped(asked[i].reference or "", _LONGEST_ANSWER),
            columns=[Column(title=name.label, answers=[answers.get((i, arm), nothing)]) for arm, name in names.items()],
        )
        for i, outcome in shown.items()
        if i in asked
    ]


def _asked(prompt: Prompt) -> str:
    if len(prompt.messages) == 1:
        return clipped(prompt.text, _LONGEST_PROMPT)
    return clipped("\n\n".join(f"[{turn.role}] {turn.content}" for turn in prompt.messages), _LONGEST_PROMPT)


def _answer(sample: Sample) -> str:
    cut = " [cut off]" if sample.cut_off else ""
    thought = f"[{count(len(sample.reasoning), 'character')} of reasoning]\n" if sample.reasoning else ""
    return f"{thought}{clipped(sample.text, _LONGEST_ANSWER)}{cut}"
