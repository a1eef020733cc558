"""Rows to prompts: columns mapped, human answers derived, duplicates dropped, splits drawn.

The draw sorts by a hash of (seed, text) and fills test, then validation, then train: growing the training split never
moves a prompt into or out of the test split, and the order of the file does not matter.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import InputError
from potstill.prompts.columns import column, messages_of
from potstill.prompts.rows import read_rows
from potstill.recipe.choices import ChoicePrompts, ChoiceRecipe
from potstill.records import Message, Prompt, Split


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of a run, and how many rows were left out, by reason."""

    prompts: tuple[Prompt, ...]
    left_out: Mapping[str, int]

    def split(self, name: Split) -> tuple[Prompt, ...]:
        return tuple(p for p in self.prompts if p.split == name)


@dataclass(frozen=True, slots=True)
class _Candidate:
    id: str
    messages: tuple[Message, ...]
    reference: str | None
    grade: float | None
    normal: str


Refuse = Callable[[tuple[Message, ...]], str | None]
"""A reason to leave these messages out, or None."""


def load_prompts(recipe: ChoiceRecipe, *, refuse: Refuse = lambda _: None) -> PromptSet:
    """Raises InputError where a column, a value or a split does not fit."""
    ask = recipe.prompts
    left_out: Counter[str] = Counter()
    kept: dict[str, _Candidate] = {}
    for where, row in read_rows(ask.source, ask.header):
        found = _candidate(ask, recipe.answers.choices, where, row)
        if isinstance(found, str):
            left_out[found] += 1
        elif found.normal in kept:
            left_out["duplicate text"] += 1
        elif reason := refuse(found.messages):
            left_out[reason] += 1
        else:
            kept[found.normal] = found
    _check_enough(ask, len(kept), left_out)
    drawn = sorted(kept.values(), key=lambda c: _hash(f"{recipe.seed}\n{c.normal}"))
    left_out["not needed for the splits"] += len(drawn) - ask.split.total
    prompts = _split(drawn[: ask.split.total], ask)
    _check_ids(prompts)
    return PromptSet(prompts, {reason: count for reason, count in left_out.items() if count})


def _candidate(ask: ChoicePrompts, choices: tuple[str, ...], where: str, row: dict[str, Any]) -> _Candidate | str:
    """The row as a candidate, or the reason why it is left out."""
    messages = messages_of(ask.columns, where, row)
    if not messages or not messages[-1].content.strip():
        return "empty prompt"
    grade = _grade(ask, where, row)
    reference = _answer_for(ask, grade) if ask.answer_by_grade else None
    if ask.answer_by_grade and reference is None:
        return "grade outside every range"
    if ask.columns.answer is not None:
        reference = str(column(row, ask.columns.answer, "answer", where))
        if reference not in choices:
            raise InputError(
                f"{where}: the answer '{reference}' is not one of answers.choices {list(choices)}",
                way_out="mend the row or the recipe",
            )
    normal = "\n".join(" ".join(m.content.casefold().split()) for m in messages)
    prompt_id = str(column(row, ask.columns.id, "id", where)) if ask.columns.id else _hash(normal)[:16]
    return _Candidate(prompt_id, messages, reference, grade, normal)


def _grade(ask: ChoicePrompts, where: str, row: dict[str, Any]) -> float | None:
    if ask.columns.grade is None:
        return None
    value = column(row, ask.columns.grade, "grade", where)
    try:
        grade = float(value)
    except (TypeError, ValueError):
        grade = math.nan
    if not math.isfinite(grade):
        raise InputError(f"{where}: the grade {value!r} is not a number", way_out="mend the row")
    return grade


def _answer_for(ask: ChoicePrompts, grade: float | None) -> str | None:
    ranges = (ask.answer_by_grade or {}).items()
    return next((a for a, (low, high) in ranges if grade is not None and low <= grade <= high), None)


def _check_enough(ask: ChoicePrompts, found: int, left_out: Counter[str]) -> None:
    wanted = ask.split
    if found >= wanted.total:
        return
    why = f" ({', '.join(f'{n} left out: {reason}' for reason, n in left_out.items())})" if left_out else ""
    raise InputError(
        f"prompts.split asks for {wanted.total} prompts (train {wanted.train}, validation {wanted.validation}, "
        f"test {wanted.test}), but '{ask.source}' holds {found}{why}",
        way_out="lower the split or give more prompts",
    )


def _split(drawn: list[_Candidate], ask: ChoicePrompts) -> tuple[Prompt, ...]:
    sizes: list[tuple[Split, int]] = [
        ("test", ask.split.test),
        ("validation", ask.split.validation),
        ("train", ask.split.train),
    ]
    names = [name for name, size in sizes for _ in range(size)]
    return tuple(
        Prompt(id=c.id, split=name, messages=c.messages, reference=c.reference, grade=c.grade)  # pyright: ignore[reportArgumentType]
        for c, name in zip(drawn, names, strict=True)
    )


def _check_ids(prompts: tuple[Prompt, ...]) -> None:
    twice = [i for i, count in Counter(p.id for p in prompts).items() if count > 1]
    if twice:
        raise InputError(
            f"prompts.columns.id: the id '{twice[0]}' stands on two different prompts",
            way_out="make ids unique, or leave 'id' out",
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
