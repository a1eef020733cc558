"""Rows of a JSONL, CSV, TSV or Parquet file, or of a folder of them (also one written by `datasets`), as plain dicts.

Every row comes with the place to name when it is wrong. A TSV has no quoting, as its media type says; a CSV has.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import InputError

Row = tuple[str, dict[str, Any]]
"""Where the row stands ("file, line 3") and its columns."""

_MAX_LINE = 16 << 20


def read_rows(source: str, header: Sequence[str] | None, *, key: str = "prompts.source") -> Iterator[Row]:
    """Stream the rows of `source`. Raises InputError naming file, row and column, and the recipe's `key`."""
    path = Path(source).expanduser()
    if path.is_dir():
        for file in _files_in(path):
            yield from _read_file(file, header)
    elif path.is_file():
        yield from _read_file(path, header)
    else:
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = (
            f"did you mean '{path.parent / near[0]}'?"
            if near
            else f"check '{key}' (`make data` fetches the quick start's)"
        )
        raise InputError(f"{key}: there is no file at '{source}'", way_out=hint)


def _files_in(folder: Path) -> list[Path]:
    known = [p for p in sorted(folder.rglob("*")) if p.suffix in _READERS and not p.name.startswith((".", "cache-"))]
    data = [p for p in known if p.name not in ("dataset_info.json", "state.json", "dataset_dict.json")]
    if not data:
        raise InputError(
            f"prompts.source: the folder '{folder}' holds no data files",
            way_out=f"give one with {', '.join(_READERS)} files",
        )
    return data


def _read_file(path: Path, header: Sequence[str] | None) -> Iterator[Row]:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise InputError(
            f"prompts.source: '{path}' is of no known kind",
            way_out=f"give one of {', '.join(_READERS)} or a folder",
        )
    try:
        yield from reader(path, header)
    except UnicodeDecodeError as error:
        raise InputError(
            f"prompts.source: '{path}' is not UTF-8 text ({error.reason})",
            way_out="save it as UTF-8",
        ) from None


def _jsonl(path: Path, _: Sequence[str] | None) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line) if len(line) <= _MAX_LINE else None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{where}: not a JSON object", way_out="give one JSON object per line")
            yield where, row


def _csv(path: Path, header: Sequence[str] | None) -> Iterator[Row]:
    yield from _separated(path, header, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _tsv(path: Path, header: Sequence[str] | None) -> Iterator[Row]:
    yield from _separated(path, header, delimiter="\t", quoting=csv.QUOTE_NONE)


def _separated(path: Path, header: Sequence[str] | None, *, delimiter: str, quoting: int) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)  # pyright: ignore[reportArgumentType]
        try:
            names = list(header) if header else next(lines, [])
            for cells in lines:
                if not cells:
                    continue
                where = f"{path}, line {lines.line_num}"
                if len(cells) != len(names):
                    raise InputError(
                        f"{where}: {len(cells)} cells where {len(names)} were expected ({', '.join(names)})",
                        way_out="fix the line, or name the columns in 'prompts.header'",
                    )
                yield where, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {lines.line_num}: {error}", way_out="fix the quoting") from None


def _columnar(path: Path, _: Sequence[str] | None) -> Iterator[Row]:
    """A Parquet file or an Arrow stream."""
    import pyarrow as pa  # a tenth of a second, which a `check` of other files does without

    try:
        number = 0
        for batch in _batches(path):  # pyright: ignore[reportUnknownVariableType]
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except pa.ArrowException as error:
        raise InputError(
            f"prompts.source: '{path}' is damaged: {str(error).splitlines()[0]}",
            way_out="write it again",
        ) from None


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path).iter_batches(batch_size=1024)
        return
    with pa.memory_map(str(path)) as source:
        yield from pa.ipc.open_stream(source)


_READERS = {
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _tsv,
    ".parquet": _columnar,
    ".arrow": _columnar,
}
