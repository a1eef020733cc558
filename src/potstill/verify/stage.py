"""The verification stage: every answer gets its verdict, the best are kept, all in one streamed pass.

    examples/selected.parquet   what to train on: `messages`, with provenance and licence per row
    examples/verdicts.parquet   every answer, kept or not, and what each check said of it
    examples/pairs.parquet      chosen and rejected answers in TRL's columns (where the recipe asks)
    examples/README.md          the data card

Free to run again: it reads the ledger and sends nothing, unless a judge has not been asked yet.
Same answers and same checks, same bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path

import pyarrow as pa

from potstill.errors import InputError
from potstill.prompts.columns import column
from potstill.prompts.rows import read_rows
from potstill.recipe.checks import Judge, RewardModel, Verify
from potstill.recipe.select import EvaluationSet, Select
from potstill.recipe.values import public_name
from potstill.recipe.whole import Recipe
from potstill.records import Progress, Prompt, Sample, Watch
from potstill.store.answers import tools_json
from potstill.store.files import write_atomic
from potstill.store.run import RunFolder
from potstill.store.tables import TURN, Put, table
from potstill.store.verdicts import VERDICTS
from potstill.verify.calibrate import Calibration
from potstill.verify.card import data_card
from potstill.verify.hygiene import Contamination, Exact, Near
from potstill.verify.late import Group
from potstill.verify.programs import require_checks
from potstill.verify.select import KEPT, Judged, objections, settle, with_majority
from potstill.verify.votes import Answers
from potstill.verify.workers import checked

_TURNS = pa.list_(TURN)
_SELECTED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("split", pa.string()),
        ("messages", _TURNS),
        ("tools", pa.string()),
        ("score", pa.float64()),
        ("weight", pa.float64()),
        ("student_nats", pa.float64()),
        ("rescue", pa.int32()),
        ("choice_logprobs", pa.list_(pa.float64())),
        ("labelled_by", pa.string()),
        ("teacher", pa.string()),
        ("domain", pa.string()),
        ("licence", pa.string()),
    ]
)
_PAIRS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", _TURNS),
        ("chosen", _TURNS),
        ("rejected", _TURNS),
        ("tools", pa.string()),
    ]
)


_SCORED_AT_ONCE = 256  # prompts whose answers the student sees together

Grade = Callable[[Judge | RewardModel, Iterator[Group]], Iterator[Group]]
"""Adds what a late check says of every answer that nothing spoke against so far."""

Nats = Callable[[Sequence[tuple[Prompt, Sample]]], Sequence[float | None]]
"""How surprising the student finds each answer: nats per token, None where its template cannot write it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinions:
    """What a pass is told by rooms that may not be imported here: what judges and reward models say, the student's
    opinion, where the recipe asks for it, how many prompts have no answer that could be judged, and how the answers
    were calibrated where they are choices."""

    grade: Grade
    student_nats: Nats | None = None
    unanswered: int = 0
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Answers by what became of them; prompts by whether an answer was kept ("kept"), one that rescue brought
    ("rescued"), or none ("lost"; "unanswered" where there was nothing to judge); the sums of every judge's ledger."""

    selected: Path
    reasons: Counter[str] = field(default_factory=Counter[str])
    prompts: Counter[str] = field(default_factory=Counter[str])
    pairs: int = 0
    judges: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])

    @property
    def kept(self) -> int:
        return self.reasons[KEPT]

    @property
    def left_out(self) -> list[tuple[str, int]]:
        """What spoke against answers and how many, the most frequent first."""
        return [(reason, count) for reason, count in self.reasons.most_common() if reason != KEPT]


def verify_answers(
    recipe: Recipe, answers: Answers, run: RunFolder, *, total: int, watch: Watch, handed: Opinions
) -> Verified:
    """Judge `answers` (a prompt's in a row; choices are calibrated already) and write what is described above. Raises
    InputError where no choice of the teacher is kept."""
    require_checks(recipe)
    if recipe.select.prefer == "learnable" and handed.student_nats is None:
        raise InputError(
            "select.prefer is 'learnable', but nobody said how surprising the student finds an answer",
            way_out="hand down train.learnable.student_nats(recipe)",
        )
    gate = _Gate(recipe.select)
    reasons, prompts = Counter[str](), Counter[str](unanswered=handed.unanswered)
    pairs, confidence = 0, 0.0
    with ExitStack() as files:
        selected = files.enter_context(table(run.selected, _SELECTED))
        verdicts = files.enter_context(table(run.verdicts, VERDICTS))
        paired = _pairs_table(files, run.selected, wanted=recipe.select.pairs)
        groups = (objections(group, _verify(recipe)) for group in _graded(recipe, answers, handed.grade))
        for group in _scored(groups, handed.student_nats):
            judged, pair = settle(group, recipe.select, gate)
            for one in judged:
                reasons[one.reason] += 1
                confidence = max(confidence, _confidence(one.sample))
                verdicts(_verdict_row(one))
                if one.kept:
                    selected(_selected_row(recipe, one))
            prompts[_fate(judged)] += 1
            if pair and paired:
                paired(_pair_row(*pair))
                pairs += 1
            done, note = reasons.total(), f"{reasons[KEPT]:,} kept"
            watch(Progress(stage="verify", what="answers", done=done, total=max(done, total), note=note))
    write_atomic(run.selected.with_name("README.md"), data_card(recipe, reasons, prompts, handed.calibration))
    if handed.calibration is not None and not reasons[KEPT]:
        raise InputError(
            f"verify: none of {reasons.total()} answers was accepted (highest confidence {confidence:.3f})",
            way_out="lower what the checks 'confidence' and 'allowed_mass' ask for, see examples/README.md",
        )
    return Verified(selected=run.selected, reasons=reasons, prompts=prompts, pairs=pairs)


def unsolved(recipe: Recipe, answers: Answers, grade: Grade) -> Iterator[Prompt]:
    """The prompts of which no answer passes the checks, late ones included, in order."""
    for group in _graded(recipe, answers, grade):
        if all(one.reason for one in objections(group, _verify(recipe))):
            yield group[0].prompt


def _verify(recipe: Recipe) -> Verify:
    """The section; of choices it may be left out."""
    return recipe.verify or Verify.model_construct(checks=(), undecided="drop", processes=1)


def _graded(recipe: Recipe, answers: Answers, grade: Grade) -> Iterator[Group]:
    """A prompt's answers with what all checks say: first those that cost nothing."""
    verify = _verify(recipe)
    groups = _by_prompt(verify, answers)
    for check in verify.late:
        groups = grade(check, groups)
    return groups


def _by_prompt(verify: Verify, answers: Answers) -> Iterator[Group]:
    rows = checked(answers, verify.checks, processes=verify.processes)
    for _, group in groupby(rows, key=lambda row: row[0].id):
        judged = [Judged(prompt=prompt, sample=sample, findings=findings) for prompt, sample, findings in group]
        yield with_majority(judged, verify.checks)


def _scored(groups: Iterator[Group], student_nats: Nats | None) -> Iterator[Group]:
    """The groups, with the student's opinion of every answer that passed where somebody asks for it."""
    if student_nats is None:
        yield from groups
        return
    while some := list(islice(groups, _SCORED_AT_ONCE)):
        passed = [(one.prompt, one.sample) for group in some for one in group if not one.reason]
        nats = iter(student_nats(passed))
        for group in some:
            yield [one if one.reason else replace(one, student_nats=next(nats)) for one in group]


def _confidence(sample: Sample) -> float:
    return 0.0 if sample.calibrated_logprobs is None else math.exp(max(sample.calibrated_logprobs))


def _fate(judged: Sequence[Judged]) -> str:
    kept = next((one for one in judged if one.kept), None)
    return "lost" if kept is None else "rescued" if kept.sample.rescue else "kept"


def _pairs_table(files: ExitStack, selected: Path, *, wanted: bool) -> Put | None:
    path = selected.with_name("pairs.parquet")
    if wanted:
        return files.enter_context(table(path, _PAIRS))
    path.unlink(missing_ok=True)
    return None


class _Gate:
    """Hygiene, asked of answers that would be kept: duplicates and what the evaluation set holds."""

    def __init__(self, select: Select) -> None:
        self._exact = Exact()
        self._near = None if select.near_duplicates is None else Near(select.near_duplicates)
        self._evaluation = None
        if (evaluation := select.evaluation) is not None:
            self._evaluation = Contamination(_texts(evaluation), size=evaluation.words)

    def __call__(self, prompt: Prompt, sample: Sample) -> str:
        if self._evaluation is not None:
            turns = [("prompt", message.content) for message in prompt.messages]
            for what, text in (*turns, ("answer", sample.text), ("reasoning", sample.reasoning or "")):
                if run := self._evaluation.evidence(text):
                    return f"its {what} is in the evaluation set: {run}"
        whole = f"{prompt.conversation}\n{sample.text}" + (tools_json((*prompt.tools, *sample.tool_calls)) or "")
        if self._exact.seen(whole):
            return "duplicate"
        if self._near is not None and (near := self._near.seen(whole)):
            return f"near-duplicate: {near}"
        return ""


def _texts(evaluation: EvaluationSet) -> Iterator[str]:
    empty = True
    for where, row in read_rows(evaluation, Counter(), key="select.evaluation.source"):
        empty = False
        for name in evaluation.columns:
            yield str(column(row, name, "evaluation", where) or "")
    if empty:
        raise InputError(
            f"select.evaluation.source: '{evaluation.source}' holds no rows", way_out="give the evaluation set"
        )


def _turns(prompt: Prompt) -> list[dict[str, object]]:
    return [message.as_dict() for message in prompt.messages]


def _selected_row(recipe: Recipe, one: Judged) -> dict[str, object]:
    return {
        "prompt_id": one.prompt.id,
        "index": one.sample.index,
        "split": one.prompt.split,
        "messages": [*_turns(one.prompt), one.sample.message.as_dict()],
        "tools": tools_json(one.prompt.tools),
        "score": one.score,
        "weight": one.weight,
        "student_nats": one.student_nats,
        "rescue": one.sample.rescue,
        "choice_logprobs": one.sample.calibrated_logprobs,
        "labelled_by": "teacher",
        "teacher": public_name(recipe.asked(one.sample.rescue).model),
        "domain": None,
        "licence": recipe.licences_of(recipe.asked(one.sample.rescue)),
    }


def _verdict_row(one: Judged) -> dict[str, object]:
    return {
        "prompt_id": one.prompt.id,
        "index": one.sample.index,
        "kept": one.kept,
        "reason": one.reason,
        "evidence": one.evidence,
        "score": one.score,
        "weight": one.weight,
        "student_nats": one.student_nats,
        "rescue": one.sample.rescue,
        "findings": [asdict(finding) for finding in one.findings],
    }


def _pair_row(chosen: Judged, rejected: Judged) -> dict[str, object]:
    return {
        "prompt_id": chosen.prompt.id,
        "prompt": _turns(chosen.prompt),
        "chosen": [chosen.sample.message.as_dict()],
        "rejected": [rejected.sample.message.as_dict()],
        "tools": tools_json(chosen.prompt.tools),
    }
