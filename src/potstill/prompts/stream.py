"""Prompts for a teacher that writes, one after the other and never all in memory."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import assert_never

from potstill.errors import InputError, MissingEnvironment
from potstill.prompts.columns import column, messages_of
from potstill.prompts.rows import read_rows
from potstill.recipe.prompts import Expand, PromptFile, ReasoningGym, Source
from potstill.records import Message, Prompt


def stream_prompts(ask: Source, left_out: Counter[str]) -> Iterator[Prompt]:
    """In the order of the source; empty ones are counted in `left_out`. Raises a PotstillError."""
    match ask:
        case PromptFile():
            yield from _from_file(ask, left_out)
        case ReasoningGym():
            yield from _from_gym(ask)
        case Expand():
            yield from _from_file(ask.seeds, left_out)  # what the teacher adds to them is not written yet
        case _:
            assert_never(ask)


def source_mark(ask: Source) -> str:
    """Changes when a file of the source does: names, sizes and times, so that a gigabyte is not read to know."""
    if isinstance(ask, ReasoningGym):
        return version("reasoning-gym")
    if isinstance(ask, Expand):
        return source_mark(ask.seeds)
    path = Path(ask.source).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    return repr([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])


def described(ask: Source) -> str:
    """The source, for people."""
    match ask:
        case PromptFile(source=source) | Expand(seeds=PromptFile(source=source)):
            return f"'{source}'"
        case ReasoningGym(task=task):
            return f"reasoning-gym's {task}"


def _from_file(ask: PromptFile, left_out: Counter[str]) -> Iterator[Prompt]:
    for where, row in read_rows(ask.source, ask.header):
        messages = messages_of(ask.columns, where, row)
        if not messages or not messages[-1].content.strip():
            left_out["empty prompt"] += 1
            continue
        prompt_id = str(column(row, ask.columns.id, "id", where)) if ask.columns.id else _id(messages)
        known = ask.columns.reference
        reference = None if known is None else as_reference(column(row, known, "reference", where))
        yield Prompt(id=prompt_id, split="train", messages=messages, reference=reference)


def as_reference(value: object) -> str | None:
    """A text as it is, any other value as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _from_gym(ask: ReasoningGym) -> Iterator[Prompt]:
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
    for number, task in enumerate(tasks):
        messages = (Message(role="user", content=str(task["question"])),)
        reference = as_reference(dict(task))
        yield Prompt(id=f"{ask.task}-{number}", split="train", messages=messages, reference=reference)


def _id(messages: tuple[Message, ...]) -> str:
    return hashlib.sha256(repr([m.as_dict() for m in messages]).encode(errors="surrogatepass")).hexdigest()[:16]
