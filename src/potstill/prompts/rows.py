"""Rows of JSONL, JSON, CSV, TSV, Parquet and Arrow files as plain dicts, one after the other.

Every row comes with the place to name when it is wrong. A TSV has no quoting, as its media type says; a CSV has. Text
is UTF-8, with or without a byte order mark; a file whose name ends in .gz is unpacked.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

from potstill.errors import InputError
from potstill.prompts.folder import COLUMNAR, TEXTS, files_of, kind_of
from potstill.recipe.prompts import DataFiles
from potstill.text.whole import whole_values

Row = tuple[str, dict[str, Any]]
"""Where the row stands ("file, line 3") and its columns."""

_LONGEST = 16 << 20  # characters of a row
_CHUNK = 1 << 18
_SAMPLE = 1 << 16  # characters of a CSV that its delimiter is found in
_SAMPLE_ROWS = 20
_DELIMITERS = ",;\t|"
_BETWEEN = re.compile(r"[\s,\ufeff]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_rows(files: DataFiles, left_out: Counter[str], *, key: str = "prompts.source") -> Iterator[Row]:
    """Stream the rows. Half of a UTF-16 pair becomes U+FFFD and is counted in `left_out`. Raises InputError naming file
    and row, or the recipe's `key`."""
    for path in files_of(files, key):
        with _readable(path, key):
            yield from _read_file(path, files, left_out, key)


def readings(files: DataFiles, *, key: str) -> Iterator[str]:
    """How files are read where their names do not say it, for people. Raises as `read_rows` does."""
    for path in files_of(files, key):
        with _readable(path, key):
            kind = kind_of(path)
            if kind == ".csv" and (found := _delimiter_of(path, files)) != ",":
                yield f"'{path}' is read with {found!r} between its cells ('{key.rpartition('.')[0]}.delimiter')"
            elif kind in (".jsonl", ".json") and _is_list(path):
                yield f"'{path}' is read as one JSON list"


@contextmanager
def _readable(path: Path, key: str) -> Generator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{key}: '{path}' is not UTF-8 text ({error.reason})", way_out="save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{key}: '{path}' is damaged: {error}", way_out="pack it again") from None


def _read_file(path: Path, files: DataFiles, left_out: Counter[str], key: str) -> Iterator[Row]:
    kind = kind_of(path)
    named = next((name for name in ("header", "delimiter") if getattr(files, name) is not None), None)
    if named is not None and kind not in (".csv", ".tsv", ".txt"):
        raise InputError(f"{key}: '{path}' is no CSV", way_out=f"leave '{key.rpartition('.')[0]}.{named}' out")
    match kind:
        case ".jsonl" | ".json":
            yield from _list_items(path, left_out) if _is_list(path) else _lines(path, left_out)
        case ".csv":
            yield from _separated(path, files, key, delimiter=_delimiter_of(path, files), quoting=csv.QUOTE_MINIMAL)
        case ".tsv" | ".txt":
            yield from _separated(path, files, key, delimiter=files.delimiter or "\t", quoting=csv.QUOTE_NONE)
        case ".parquet" | ".arrow":
            yield from _columnar(path, kind, key)
        case _:
            known = f"{', '.join((*TEXTS, *COLUMNAR))} (text also as .gz) or a folder"
            raise InputError(f"{key}: '{path}' is of no known kind", way_out=f"give one of {known}")


def _opened(path: Path) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


# JSON


def _is_list(path: Path) -> bool:
    with _opened(path) as text:
        while chunk := text.read(_CHUNK):
            if begins := _BETWEEN.sub("", chunk, count=1):
                return begins[0] == "["
    return False


def _lines(path: Path, left_out: Counter[str]) -> Iterator[Row]:
    with _opened(path) as text:
        for number, line in enumerate(iter(lambda: text.readline(_LONGEST + 1), ""), 1):
            if not (line := line.strip("\ufeff \t\r\n")):
                continue
            where = f"{path}, line {number}"
            if len(line) > _LONGEST:
                raise _too_long(where)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield where, _object(where, row, line, left_out)


def _list_items(path: Path, left_out: Counter[str]) -> Iterator[Row]:
    """The objects of one JSON list, without all of them in memory."""
    decode = json.JSONDecoder().raw_decode
    with _opened(path) as text:
        held = text.read(_CHUNK)
        while "[" not in held:
            held += text.read(_CHUNK)
        at = held.index("[") + 1
        line = 1 + held.count("\n", 0, at)
        while True:
            begin = _BETWEEN.match(held, at).end()  # pyright: ignore[reportOptionalMemberAccess]
            line += held.count("\n", at, begin)
            at, where = begin, f"{path}, line {line}"
            if held[at : at + 1] == "]":
                break
            try:
                row, end = decode(held, at)
            except (ValueError, RecursionError) as error:
                cut = _cut(error, held)
                if cut and len(held) - at > _LONGEST:
                    raise _too_long(where) from None
                more = text.read(max(_CHUNK, len(held) - at)) if cut else ""
                if not more:
                    raise _no_object(where, held[at:] or "the list does not end") from None
                held, at = held[at:] + more, 0
                continue
            yield where, _object(where, row, held[at:end], left_out)
            line += held.count("\n", at, end)
            at = end
        if (held[at + 1 :] + text.read(_CHUNK)).strip():
            raise InputError(f"{where}: more text follows the list", way_out="give one list per file")


def _cut(error: Exception, held: str) -> bool:
    """Whether the parser stopped at the end of what is held, where more may follow."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > len(held) - len("-Infinity")


def _object(where: str, row: Any, text: str, left_out: Counter[str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise _no_object(where, text)
    if _SURROGATE.search(text) and (healed := whole_values(row)) != row:
        left_out["half of a UTF-16 pair (now U+FFFD)"] += 1
        return healed
    return cast("dict[str, Any]", row)


def _no_object(where: str, text: str) -> InputError:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return InputError(
        f"{where}: not a JSON object: {shown!r}", way_out="give one JSON object per line, or one list of objects"
    )


def _too_long(where: str) -> InputError:
    return InputError(f"{where}: too long a row, above {_LONGEST:,} characters", way_out="leave it out or split it")


# CSV and TSV


def _delimiter_of(path: Path, files: DataFiles) -> str:
    """The delimiter that cuts the header into most cells, and at least half of the first rows into as many; a comma
    where none does."""
    if files.delimiter is not None:
        return files.delimiter
    with _opened(path) as text:
        sample = text.read(_SAMPLE)

    def cells(delimiter: str) -> int:
        rows = list(
            islice(filter(None, csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)), _SAMPLE_ROWS)
        )
        complete = rows if len(sample) < _SAMPLE or len(rows) == _SAMPLE_ROWS else rows[:-1]
        width = len(files.header or next(iter(complete), ()))
        return width if 2 * sum(len(row) == width for row in complete) >= len(complete) else 0

    best = max(_DELIMITERS, key=cells)
    return best if cells(best) > 1 else ","


def _separated(path: Path, files: DataFiles, key: str, *, delimiter: str, quoting: int) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST)
    section = key.rpartition(".")[0]
    with _opened(path) as text:
        lines = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)  # pyright: ignore[reportArgumentType]
        try:
            names = list(files.header) if files.header else next(lines, [])
            if twice := next((name for name, n in Counter(names).items() if name and n > 1), None):
                raise InputError(f"{path}: two columns are called '{twice}'", way_out="give each its own name")
            for cells in lines:
                if not cells:
                    continue
                where = f"{path}, line {lines.line_num}"
                if len(cells) != len(names):
                    raise InputError(
                        f"{where}: {len(cells)} cells where {len(names)} were expected ({', '.join(names)}), with "
                        f"{delimiter!r} between them",
                        way_out=f"fix the line, or say '{section}.header' or '{section}.delimiter'",
                    )
                yield where, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {lines.line_num}: {error}", way_out="fix the quoting") from None


# Parquet and Arrow


def _columnar(path: Path, kind: str, key: str) -> Iterator[Row]:
    """A Parquet file or an Arrow stream."""
    import pyarrow as pa  # a tenth of a second, which a `check` of other files does without

    try:
        rows = (row for batch in _batches(path, kind) for row in batch.to_pylist())
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the reader's
            raise
        raise InputError(
            f"{key}: '{path}' is damaged: {str(error).splitlines()[0]}", way_out="write it again"
        ) from None


def _batches(path: Path, kind: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == ".parquet":
        yield from pq.ParquetFile(path).iter_batches(batch_size=1024)
        return
    with pa.memory_map(str(path)) as source:
        yield from pa.ipc.open_stream(source)
