"""Prompts, one after the other and never all in memory, but for a source with a `split`, which is read whole.

The draw of a split sorts by a hash of (seed, text) and fills test, then validation, then train: growing the training
split never moves a prompt into or out of the test split, and the order of the file does not matter.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from potstill.errors import InputError, MissingEnvironment
from potstill.prompts.columns import as_text, column, messages_of, scalar, tools_of
from potstill.prompts.rows import read_rows, readings
from potstill.recipe.prompts import Expand, PromptFile, ReasoningGym, Source, SplitSizes
from potstill.recipe.task import Choice, Task, Text
from potstill.records import Message, Prompt, Split, Tools
from potstill.store.asks import SameId

_TEXT = Text()


def stream_prompts(
    ask: Source,
    left_out: Counter[str],
    *,
    task: Task = _TEXT,
    seed: int = 0,
    splits: Collection[Split] | None = None,
) -> Iterator[Prompt]:
    """The prompts of the wanted `splits` (None: all), in the order of the source, or of the draw where it has a split.
    A source without one is all of the split that is wanted, by default train. What is left out is counted by reason in
    `left_out`. Raises a PotstillError."""
    match ask:
        case PromptFile(split=SplitSizes() as sizes):
            found = _distinct(_of_file(ask, task, left_out), left_out)
            _check_enough(ask.source, sizes, len(found), left_out)
            drawn = _drawn(found, sizes, seed, ids=ask.columns.id is not None)
            if twice := [prompt_id for prompt_id, n in Counter(p.id for p in drawn).items() if n > 1]:
                raise same_id(ask, twice[0])
            left_out["not needed for the splits"] += len(found) - len(drawn)
            yield from (prompt for prompt in drawn if splits is None or prompt.split in splits)
        case PromptFile() | ReasoningGym() | Expand():
            split, prompt = next(iter(splits)) if splits else "train", None
            file = ask.seeds if isinstance(ask, Expand) else ask  # more is written after the seeds
            made = _of_gym(file, task) if isinstance(file, ReasoningGym) else _of_file(file, task, left_out)
            for prompt in made:
                yield prompt if prompt.split == split else replace(prompt, split=split)
            if prompt is None:
                raise InputError(f"{described(ask)} holds no prompts{_why(left_out)}", way_out="give some")


def source_mark(ask: Source) -> str:
    """Changes when a file of the source does: names, sizes and times, so that a gigabyte is not read to know."""
    if isinstance(ask, ReasoningGym):
        return version("reasoning-gym")
    if isinstance(ask, Expand):
        return source_mark(ask.seeds)
    return files_mark(ask.source)


def files_mark(source: str) -> str:
    """The same of a file or a folder."""
    path = Path(source).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    return repr([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])


def described(ask: Source) -> str:
    """The source, for people."""
    match ask:
        case PromptFile(source=source) | Expand(seeds=PromptFile(source=source)):
            return f"'{source}'"
        case ReasoningGym(task=task):
            return f"reasoning-gym's {task}"


def how_read(ask: Source | None, *, key: str = "prompts.source") -> tuple[str, ...]:
    """How its files are read where their names do not say it, for people. `key` is the source's in the recipe."""
    files = ask.seeds if isinstance(ask, Expand) else ask
    return tuple(readings(files, key=key)) if isinstance(files, PromptFile) else ()


def same_id(ask: Source, prompt_id: str) -> SameId:
    """Two different prompts have this id: where, found by reading the source once more."""
    places: list[str] = []
    if isinstance(ask, PromptFile) and (name := ask.columns.id) is not None:
        rows = read_rows(ask, Counter())
        places = [place for place, row in rows if as_text(column(row, name, "id", place)) == prompt_id]
    return SameId(prompt_id, f"{places[0]}; {places[-1]}" if places else "")


# rows to prompts


def _of_file(ask: PromptFile, task: Task, left_out: Counter[str]) -> Iterator[Prompt]:
    for where, row in read_rows(ask, left_out):
        found = _of_row(ask, task, where, row, left_out)
        if isinstance(found, Prompt):
            yield found
        else:
            left_out[found] += 1


def _of_row(ask: PromptFile, task: Task, where: str, row: dict[str, Any], left_out: Counter[str]) -> Prompt | str:
    """The row as a prompt, or the reason why it is left out. Raises InputError."""
    columns, messages = ask.columns, messages_of(ask.columns, where, row, left_out)
    if not messages or not messages[-1].content.strip():
        return "empty prompt"
    if messages[-1].role == "system":
        return "a conversation of system turns alone"
    tools, grade = tools_of(columns, where, row), _grade(ask, where, row)
    reference, any_of = None, False
    if ask.reference_by_grade:
        ranges = ask.reference_by_grade.items()
        reference = next((r for r, (low, high) in ranges if grade is not None and low <= grade <= high), None)
        if reference is None:
            return "grade outside every range"
    elif columns.reference is not None:
        value = column(row, columns.reference, "reference", where)
        reference, any_of = _reference(task, where, value), _alternatives(value)
    prompt_id = _id(messages, tools, reference) if columns.id is None else _own_id(columns.id, where, row)
    return Prompt(
        id=prompt_id, split="train", messages=messages, tools=tools, reference=reference, any_of=any_of, grade=grade
    )


def _own_id(name: str, where: str, row: dict[str, Any]) -> str:
    found = scalar(column(row, name, "id", where), name, "id", where)
    if not found or not found.strip():
        raise InputError(
            f"prompts.columns.id: {where}: '{name}' is empty",
            way_out="fill it in every row, or leave 'prompts.columns.id' out",
        )
    return found


def _grade(ask: PromptFile, where: str, row: dict[str, Any]) -> float | None:
    if ask.columns.grade is None:
        return None
    value = column(row, ask.columns.grade, "grade", where)
    try:
        grade = float(value)
    except (TypeError, ValueError):
        grade = math.nan
    if not math.isfinite(grade):
        raise InputError(f"{where}: the grade {value!r} is not a number", way_out="fix the row")
    return grade


def _reference(task: Task, where: str, value: object) -> str | None:
    if isinstance(value, bytes):
        raise InputError(f"{where}: the reference is bytes, not a text", way_out="name a column of texts")
    found = None if value == [] else as_text(value)
    if found is not None and isinstance(task, Choice) and found not in task.choices:
        raise InputError(
            f"{where}: the reference '{found}' is not one of task.choices {list(task.choices)}",
            way_out="fix the row or the recipe",
        )
    return found


def _alternatives(value: object) -> bool:
    """Whether it is a list of references, of which some may be missing."""
    parts = cast("list[object]", value) if isinstance(value, list) else []
    return any(part is not None for part in parts) and all(isinstance(p, str | int | float | None) for p in parts)


def _of_gym(ask: ReasoningGym, task: Task) -> Iterator[Prompt]:
    try:
        import reasoning_gym  # the extra `reasoning`
    except ImportError:
        raise MissingEnvironment(
            "prompts of kind 'reasoning_gym' need the package reasoning-gym",
            way_out="pip install 'potstill[reasoning]'",
        ) from None
    try:
        tasks = reasoning_gym.create_dataset(ask.task, size=ask.size, **{"seed": 0, **ask.config})
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"prompts: reasoning-gym refuses the task '{ask.task}' with {ask.config}: {error}",
            way_out="see its gallery of tasks and their settings",
        ) from None
    for number, made in enumerate(tasks):
        messages = (Message(role="user", content=str(made["question"])),)
        answer = made["answer"] if isinstance(task, Choice) else dict(made)
        reference = _reference(task, f"reasoning-gym's {ask.task}, task {number}", answer)
        yield Prompt(id=f"{ask.task}-{number}", split="train", messages=messages, reference=reference)


def _id(messages: tuple[Message, ...], tools: Tools, reference: str | None) -> str:
    """A hash of all that makes it a prompt of its own: a text may be asked with several references."""
    made_of = repr([*(m.as_dict() for m in messages), *tools, *([] if reference is None else [reference])])
    return _hash(made_of)[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


# splits


def _distinct(prompts: Iterator[Prompt], left_out: Counter[str]) -> dict[str, Prompt]:
    """The first prompt of every text, by that text without case and with single blanks."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        normal = "\n".join(" ".join(m.content.casefold().split()) for m in prompt.messages)
        if normal in found:
            left_out["duplicate text"] += 1
        else:
            found[normal] = prompt
    return found


def _check_enough(source: str, wanted: SplitSizes, found: int, left_out: Counter[str]) -> None:
    if found >= wanted.total:
        return
    raise InputError(
        f"prompts.split asks for {wanted.total} prompts (train {wanted.train}, validation {wanted.validation}, "
        f"test {wanted.test}), but '{source}' holds {found}{_why(left_out)}",
        way_out="lower the split or give more prompts",
    )


def _why(left_out: Counter[str]) -> str:
    return f" ({', '.join(f'{n} left out: {reason}' for reason, n in left_out.items())})" if left_out else ""


def _drawn(found: dict[str, Prompt], sizes: SplitSizes, seed: int, *, ids: bool) -> list[Prompt]:
    """Test, then validation, then train. `ids`: the prompts bring their own; else they are named by their text."""
    splits: tuple[tuple[Split, int], ...] = (
        ("test", sizes.test),
        ("validation", sizes.validation),
        ("train", sizes.train),
    )
    names = [name for name, size in splits for _ in range(size)]
    order = sorted(found, key=lambda normal: _hash(f"{seed}\n{normal}"))
    return [
        replace(found[normal], split=name, **({} if ids else {"id": _hash(normal)[:16]}))
        for normal, name in zip(order, names, strict=False)
    ]
