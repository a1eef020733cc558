"""Parquet files that are written row by row, in one pass beside each other, and appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.store.files import drafted

_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)
TURN = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("reasoning_content", pa.string()),
        ("name", pa.string()),
        ("tool_calls", pa.list_(_CALL)),
        ("tool_call_id", pa.string()),
    ]
)
"""A message in the Hugging Face convention; the arguments of a tool call are JSON text."""

_GROUP = 10_000

Put = Callable[[Mapping[str, Any]], None]


@contextmanager
def table(path: Path, schema: pa.Schema) -> Generator[Put]:  # pyright: ignore[reportUnknownParameterType]
    """`put(row)` adds a row; ten thousand are in memory at once. Same rows, same bytes."""
    rows: list[Mapping[str, Any]] = []
    with drafted(path) as draft, pq.ParquetWriter(draft, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def put(row: Mapping[str, Any]) -> None:
            rows.append(row)
            if len(rows) == _GROUP:
                flush()

        yield put
        if rows:
            flush()
