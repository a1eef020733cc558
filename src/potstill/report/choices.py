"""Tasks with a few allowed answers: how sure the teacher was of its answers to the training prompts, and what every arm
made of the test prompts.

Dimension key: N prompts, C choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from potstill.recipe import Recipe
from potstill.records import Prompt, Verdict
from potstill.report.tally import Few, Outcomes, tally_outcomes
from potstill.store.requests import Requests
from potstill.store.run import STUDENT, RunFolder
from potstill.store.verdicts import read_verdicts
from potstill.verify.calibrate import AS_SAID, Array, Calibration, calibrated, read_calibration
from potstill.verify.votes import choices_of, counted

BINS = 40
_AT_ONCE = 500
_SHOWN_PER_REASON = 5


@dataclass(frozen=True, slots=True)
class Label:
    """The teacher's calibrated answer to a training prompt and its verdict. One that a rescue brought lies elsewhere:
    neither `answer` nor `confidence` is known here."""

    prompt: Prompt
    answer: str
    confidence: float | None
    kept: bool
    reason: str


@dataclass(slots=True)
class Reason:
    """Answers of one verdict: the sum of the confidences that are `known`, and how many agree with the person who was
    `asked` too."""

    kept: bool
    answers: int = 0
    known: int = 0
    confidence: float = 0.0
    asked: int = 0
    agree: int = 0
    few: Few = field(default_factory=lambda: Few(_SHOWN_PER_REASON))

    def add(self, label: Label) -> None:
        self.answers += 1
        self.few.add(label.prompt.id)
        if label.confidence is None:
            return
        self.known += 1
        self.confidence += label.confidence
        if label.prompt.reference is not None:
            self.asked += 1
            self.agree += label.answer == label.prompt.reference


@dataclass(slots=True)
class Labels:
    """The teacher's answers by verdict, kept ones and others by confidence, and a few of each verdict."""

    reasons: dict[str, Reason] = field(default_factory=dict[str, Reason])
    bins: dict[bool, Counter[int]] = field(default_factory=lambda: {True: Counter[int](), False: Counter[int]()})
    shown: list[Label] = field(default_factory=list[Label])

    def add(self, label: Label) -> None:
        self.reasons.setdefault(label.reason, Reason(label.kept)).add(label)
        if label.confidence is not None:
            self.bins[label.kept][min(int(BINS * label.confidence), BINS - 1)] += 1


def read_labels(run: RunFolder, recipe: Recipe) -> Labels:
    found, calibration = Labels(), _calibration(run)
    with Requests(run.ledger) as requests:
        for label in _labels(read_verdicts(run.verdicts), recipe, calibration, requests):
            found.add(label)
        chosen = {i for reason in found.reasons.values() for i in reason.few.ids}
        some = (verdict for verdict in read_verdicts(run.verdicts) if verdict.prompt_id in chosen)
        found.shown += _labels(some, recipe, calibration, requests)
    return found


def _labels(
    verdicts: Iterable[Verdict], recipe: Recipe, calibration: Calibration, requests: Requests
) -> Iterator[Label]:
    """A few hundred prompts are in memory at once."""
    rows = iter(verdicts)
    while some := list(islice(rows, _AT_ONCE)):
        answers = requests.samples(most=recipe.generate.n, of=[verdict.prompt_id for verdict in some])
        said = {prompt.id: (prompt, sample) for prompt, sample in calibrated(recipe, calibration, answers)}
        for verdict in some:
            if verdict.prompt_id not in said:  # of a prompt that the recipe has no more
                continue
            prompt, sample = said[verdict.prompt_id]
            own = sample.index == verdict.index
            logprobs = sample.calibrated_logprobs if own else None
            confidence = None if logprobs is None else float(np.exp(max(logprobs)))
            yield Label(prompt, sample.text if own else "", confidence, verdict.kept, verdict.reason)


def _calibration(run: RunFolder) -> Calibration:
    return read_calibration(run) if run.calibration.is_file() else AS_SAID


Row = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A test prompt with the probabilities that teacher and student give to the choices."""

    prompt: Prompt
    teacher_p: Row
    student_p: Row

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


@dataclass(frozen=True, slots=True)
class Tested:
    """What every arm makes of the test prompts: its probabilities of the choices, by the prompt's id. `teacher_raw` is
    the teacher before calibration."""

    choices: Sequence[str]
    prompts: Mapping[str, Prompt]
    p: Mapping[str, Mapping[str, Row]]

    def answers(self) -> list[Answered]:
        """Of the prompts that teacher and student answered, the most confident first."""
        teacher, student = (self.p.get(arm, {}) for arm in ("teacher", STUDENT))
        both = [Answered(self.prompts[i], teacher[i], student[i]) for i in student if i in teacher]
        return sorted(both, key=lambda one: (-one.confidence, one.prompt.id))

    def right(self, arm: str) -> dict[str, bool]:
        """By prompt, where a person's answer is known."""
        return {
            i: self.choices[row.index(max(row))] == self.prompts[i].reference
            for i, row in self.p.get(arm, {}).items()
            if self.prompts[i].reference in self.choices
        }

    def outcomes(self) -> Outcomes:
        student, teacher = ({i for i, right in self.right(arm).items() if right} for arm in (STUDENT, "teacher"))
        return tally_outcomes(self.right("teacher"), student=student, teacher=teacher)


def read_tested(run: RunFolder, recipe: Recipe, arms: Iterable[str]) -> Tested | None:
    """None where teacher and student have not answered both."""
    choices, raw = choices_of(recipe), dict[str, dict[str, Row]]()
    prompts: dict[str, Prompt] = {}
    for arm in arms:
        if (ledger := RunFolder(run.test(arm)).ledger).is_file():
            with Requests(ledger) as requests:
                found = list(counted(requests.samples(), choices))
            prompts |= {prompt.id: prompt for prompt, _ in found}
            raw[arm] = {prompt.id: sample.choice_logprobs or () for prompt, sample in found}
    if not {"teacher", STUDENT} <= raw.keys():
        return None
    p = {arm: _probabilities(rows, AS_SAID) for arm, rows in raw.items()}
    p |= {"teacher_raw": p["teacher"], "teacher": _probabilities(raw["teacher"], _calibration(run))}
    return Tested(choices, prompts, p)


def _probabilities(rows: Mapping[str, Row], calibration: Calibration) -> dict[str, Row]:
    p_NC: Array = np.exp(calibration.apply(np.array(list(rows.values()))))
    return {i: tuple(row) for i, row in zip(rows, p_NC.tolist(), strict=True)}
