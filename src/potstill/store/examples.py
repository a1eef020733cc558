"""What students learn: the rows of selected.parquet, or of answers.parquet where nothing is checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from potstill.records import Example, Message


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
