"""The verification stage of a data recipe: every answer gets its verdict, the best are kept, all in one streamed pass.

    examples/selected.parquet   what to train on: `messages`, with provenance and licence per row
    examples/verdicts.parquet   every answer, kept or not, and what each check said of it
    examples/pairs.parquet      chosen and rejected answers in TRL's columns (where the recipe asks)
    examples/README.md          the data card

Free to run again: it reads the ledger and sends nothing, unless a judge has not been asked yet.
Same answers and same checks, same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path

import pyarrow as pa

from potstill.errors import InputError
from potstill.prompts.columns import column
from potstill.prompts.rows import read_rows
from potstill.recipe.checks import Judge, RewardModel
from potstill.recipe.select import EvaluationSet, Select
from potstill.recipe.whole import Recipe
from potstill.records import Message, Progress, Prompt, Sample, Watch
from potstill.store.files import write_atomic
from potstill.store.tables import TURN, Put, table
from potstill.store.verdicts import VERDICTS
from potstill.verify.card import data_card
from potstill.verify.hygiene import Contamination, Exact, Near
from potstill.verify.late import Group
from potstill.verify.programs import require_checks
from potstill.verify.select import KEPT, Judged, objections, settle, with_majority
from potstill.verify.workers import checked

_TURNS = pa.list_(TURN)
_SELECTED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("messages", _TURNS),
        ("score", pa.float64()),
        ("weight", pa.float64()),
        ("student_nats", pa.float64()),
        ("rescue", pa.int32()),
        ("teacher", pa.string()),
        ("licence", pa.string()),
    ]
)
_PAIRS = pa.schema([("prompt_id", pa.string()), ("prompt", _TURNS), ("chosen", _TURNS), ("rejected", _TURNS)])


_SCORED_AT_ONCE = 256  # prompts whose answers the student sees together

Grade = Callable[[Judge | RewardModel, Iterator[Group]], Iterator[Group]]
"""Adds what a late check says of every answer that nothing spoke against so far."""

Nats = Callable[[Sequence[tuple[Prompt, Sample]]], Sequence[float | None]]
"""How surprising the student finds each answer: nats per token, None where its template cannot write it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What a pass is told by rooms that may not be imported here: what judges and reward models say, the student's
    opinion, where the recipe asks for it, and how many prompts have no answer that could be judged."""

    grade: Grade
    student_nats: Nats | None = None
    unanswered: int = 0


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
    recipe: Recipe,
    answers: Iterable[tuple[Prompt, Sample]],
    folder: Path,
    *,
    total: int,
    watch: Watch,
    handed: Handed,
) -> Verified:
    """Judge `answers` (a prompt's in a row) and write what is described above under `folder`."""
    assert recipe.verify is not None
    require_checks(recipe)
    if recipe.select.prefer == "learnable" and handed.student_nats is None:
        raise InputError(
            "select.prefer is 'learnable', but nobody said how surprising the student finds an answer",
            way_out="hand down lessons.student_nats(recipe)",
        )
    gate = _Gate(recipe.select)
    found = Verified(selected=folder / "examples" / "selected.parquet")
    found.prompts["unanswered"] = handed.unanswered
    pairs = done = 0
    with ExitStack() as files:
        selected = files.enter_context(table(found.selected, _SELECTED))
        verdicts = files.enter_context(table(found.selected.with_name("verdicts.parquet"), VERDICTS))
        paired = _pairs_table(files, found.selected, wanted=recipe.select.pairs)
        groups = (objections(group, recipe.verify) for group in _graded(recipe, answers, handed.grade))
        for group in _scored(groups, handed.student_nats):
            judged, pair = settle(group, recipe.select, gate)
            for one in judged:
                found.reasons[one.reason] += 1
                verdicts(_verdict_row(one))
                if one.kept:
                    selected(_selected_row(recipe, one))
            found.prompts[_fate(judged)] += 1
            if pair and paired:
                paired(_pair_row(*pair))
                pairs += 1
            done += len(judged)
            note = f"{found.kept:,} kept"
            watch(Progress(stage="verify", what="answers", done=done, total=max(done, total), note=note))
    found = Verified(selected=found.selected, reasons=found.reasons, prompts=found.prompts, pairs=pairs)
    write_atomic(found.selected.with_name("README.md"), data_card(recipe, found.reasons, found.prompts))
    return found


def unsolved(recipe: Recipe, answers: Iterable[tuple[Prompt, Sample]], grade: Grade) -> Iterator[Prompt]:
    """The prompts of which no answer passes the checks, late ones included, in order."""
    assert recipe.verify is not None
    for group in _graded(recipe, answers, grade):
        if all(one.reason for one in objections(group, recipe.verify)):
            yield group[0].prompt


def _graded(recipe: Recipe, answers: Iterable[tuple[Prompt, Sample]], grade: Grade) -> Iterator[Group]:
    """A prompt's answers with what all checks say: first those that cost nothing."""
    assert recipe.verify is not None
    groups = _by_prompt(recipe, answers)
    for check in recipe.verify.late:
        groups = grade(check, groups)
    return groups


def _by_prompt(recipe: Recipe, answers: Iterable[tuple[Prompt, Sample]]) -> Iterator[Group]:
    assert recipe.verify is not None
    rows = checked(answers, recipe.verify.checks, processes=recipe.verify.processes)
    for _, group in groupby(rows, key=lambda row: row[0].id):
        judged = [Judged(prompt=prompt, sample=sample, findings=findings) for prompt, sample, findings in group]
        yield with_majority(judged, recipe.verify.checks)


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
            for what, text in (("prompt", prompt.text), ("answer", sample.text), ("reasoning", sample.reasoning or "")):
                if run := self._evaluation.evidence(text):
                    return f"its {what} is in the evaluation set: {run}"
        whole = f"{prompt.text}\n{sample.text}"
        if self._exact.seen(whole):
            return "duplicate"
        if self._near is not None and (near := self._near.seen(whole)):
            return f"near-duplicate: {near}"
        return ""


def _texts(evaluation: EvaluationSet) -> Iterator[str]:
    empty = True
    for where, row in read_rows(evaluation.source, evaluation.header, key="select.evaluation.source"):
        empty = False
        for name in evaluation.columns:
            yield str(column(row, name, "evaluation", where) or "")
    if empty:
        raise InputError(
            f"select.evaluation.source: '{evaluation.source}' holds no rows", way_out="give the evaluation set"
        )


def _turns(prompt: Prompt) -> list[dict[str, object]]:
    return [message.as_dict() for message in prompt.messages]


def _answer(sample: Sample) -> dict[str, object]:
    return Message(role="assistant", content=sample.text, reasoning_content=sample.reasoning).as_dict()


def _selected_row(recipe: Recipe, one: Judged) -> dict[str, object]:
    return {
        "prompt_id": one.prompt.id,
        "index": one.sample.index,
        "messages": [*_turns(one.prompt), _answer(one.sample)],
        "score": one.score,
        "weight": one.weight,
        "student_nats": one.student_nats,
        "rescue": one.sample.rescue,
        "teacher": recipe.asked(one.sample.rescue).model,
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
        "student_nats": one.student_nats,
        "rescue": one.sample.rescue,
        "findings": [asdict(finding) for finding in one.findings],
    }


def _pair_row(chosen: Judged, rejected: Judged) -> dict[str, object]:
    return {
        "prompt_id": chosen.prompt.id,
        "prompt": _turns(chosen.prompt),
        "chosen": [_answer(chosen.sample)],
        "rejected": [_answer(rejected.sample)],
    }
