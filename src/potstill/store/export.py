"""Kept answers and pairs as JSON lines beside the Parquet files: one batch of rows is in memory at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from potstill.errors import InputError
from potstill.store.files import drafted

_GROUP = 1000


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
