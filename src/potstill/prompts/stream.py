"""Prompts for a teacher that writes, one after the other and never all in memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from potstill.data_recipe import PromptFile
from potstill.prompts.columns import column, messages_of
from potstill.prompts.rows import read_rows
from potstill.records import Message


def stream_prompts(ask: PromptFile, left_out: Counter[str]) -> Iterator[tuple[str, tuple[Message, ...]]]:
    """(id, messages) in the order of the source; empty ones are counted in `left_out`. Raises InputError."""
    for where, row in read_rows(ask.source, ask.header):
        messages = messages_of(ask.columns, where, row)
        if not messages or not messages[-1].content.strip():
            left_out["empty prompt"] += 1
            continue
        yield (str(column(row, ask.columns.id, "id", where)) if ask.columns.id else _id(messages)), messages


def source_mark(ask: PromptFile) -> str:
    """Changes when a file of the source does: names, sizes and times, so that a gigabyte is not read to know."""
    path = Path(ask.source).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    return repr([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])


def _id(messages: tuple[Message, ...]) -> str:
    return hashlib.sha256(repr([m.as_dict() for m in messages]).encode(errors="surrogatepass")).hexdigest()[:16]
