"""The teacher's answers as Parquet in the Hugging Face `messages` convention, streamed: a million rows need no memory.

Sorted by prompt and index; no times, prices or request ids: the same answers give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.records import Message, Sample

_TURN = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("messages", pa.list_(_TURN)),
        ("finish", pa.string()),
        ("cut_off", pa.bool_()),
        ("teacher", pa.string()),
        ("licence", pa.string()),
    ]
)
_GROUP = 10_000

Row = tuple[str, tuple[Message, ...], Sample]


def write_answers(path: Path, rows: Iterable[Row], *, teacher: str, licence: str) -> int:
    """The last message of a row is the teacher's answer. Returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    count = 0
    try:
        with pq.ParquetWriter(draft, _SCHEMA, compression="zstd") as writer:
            stream = iter(rows)
            while group := list(islice(_as_dicts(stream, teacher, licence), _GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema=_SCHEMA))
                count += len(group)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return count


def _as_dicts(rows: Iterator[Row], teacher: str, licence: str) -> Iterator[dict[str, Any]]:
    for prompt_id, messages, sample in rows:
        answer = Message(role="assistant", content=sample.text, reasoning_content=sample.reasoning)
        yield {
            "prompt_id": prompt_id,
            "index": sample.index,
            "messages": [
                {"role": m.role, "content": m.content, "reasoning_content": m.reasoning_content}
                for m in (*messages, answer)
            ],
            "finish": sample.finish,
            "cut_off": sample.cut_off,
            "teacher": teacher,
            "licence": licence,
        }
