"""What students learn: the rows of selected.parquet, or of answers.parquet where nothing is checked; and the same as
JSON lines for other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from potstill.errors import InputError
from potstill.records import Example, Message
from potstill.store.files import drafted

_GROUP = 1000  # rows in memory at a time


def read_examples(path: Path) -> Iterator[Example]:
    """Every row, in order; a column that the file does not have is what `Example` says it is."""
    file = pq.ParquetFile(path)
    named = [field.name for field in fields(Example) if field.name in file.schema_arrow.names]
    for batch in file.iter_batches(columns=named):
        yield from map(_example, batch.to_pylist())


def _example(row: dict[str, Any]) -> Example:
    logprobs = row.pop("choice_logprobs", None)
    return Example(
        messages=tuple(map(Message.from_dict, row.pop("messages"))),
        tools=tuple(json.loads(row.pop("tools", None) or "[]")),
        choice_logprobs=None if logprobs is None else tuple(logprobs),
        **row,
    )


def export_examples(kept: Path, *, form: Literal["jsonl", "parquet"]) -> dict[Path, int]:
    """The table of kept answers, and that of pairs beside it, in that form, each with its number of rows. Raises
    InputError before there are any."""
    if not kept.is_file():
        what, verb = ("selected answers", "verify") if kept.stem == "selected" else ("answers", "generate")
        raise InputError(f"'{kept.parent}' holds no {what} yet", way_out=f"potstill {verb} first")
    pairs = kept.with_name("pairs.parquet")
    tables = [kept, *([pairs] if pairs.is_file() else [])]
    if form == "parquet":
        return {table: pq.read_metadata(table).num_rows for table in tables}
    return dict(_write_jsonl(table) for table in tables)


def _write_jsonl(table: Path) -> tuple[Path, int]:
    path, count = table.with_suffix(".jsonl"), 0
    with drafted(path) as draft, draft.open("w", encoding="utf-8") as lines, pq.ParquetFile(table) as rows:
        for batch in rows.iter_batches(batch_size=_GROUP):
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
            count += batch.num_rows
    return path, count
