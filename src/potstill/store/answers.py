"""The teacher's answers as Parquet in the Hugging Face `messages` convention, streamed: a million rows need no memory.

Sorted by prompt and index; no times, prices or request ids: the same answers give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.records import Message, Prompt, Sample
from potstill.store.files import drafted
from potstill.store.tables import TURN

_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("messages", pa.list_(TURN)),
        ("finish", pa.string()),
        ("cut_off", pa.bool_()),
        ("teacher", pa.string()),
        ("licence", pa.string()),
    ]
)
_GROUP = 10_000

Row = tuple[Prompt, Sample]


def write_answers(path: Path, rows: Iterable[Row], *, teacher: str, licence: str) -> int:
    """The last message of a row is the teacher's answer. Returns the number of rows."""
    count = 0
    with drafted(path) as draft, pq.ParquetWriter(draft, _SCHEMA, compression="zstd") as writer:
        stream = iter(rows)
        while group := list(islice(stream, _GROUP)):
            writer.write_table(_table(group, teacher, licence))
            count += len(group)
    return count


def _table(group: Sequence[Row], teacher: str, licence: str) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]
    """Column by column: a tenth of the time that a million dicts would take."""
    turns = [
        (*prompt.messages, Message(role="assistant", content=sample.text, reasoning_content=sample.reasoning))
        for prompt, sample in group
    ]
    flat = [message for row in turns for message in row]
    parts = [
        pa.array([m.role for m in flat], pa.string()),
        pa.array([m.content for m in flat], pa.string()),
        pa.array([m.reasoning_content for m in flat], pa.string()),
    ]
    offsets = pa.array(accumulate((len(row) for row in turns), initial=0), pa.int32())
    samples = [sample for _, sample in group]
    columns = [
        pa.array([prompt.id for prompt, _ in group], pa.string()),
        pa.array([s.index for s in samples], pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(parts, fields=list(TURN))),
        pa.array([s.finish for s in samples], pa.string()),
        pa.array([s.cut_off for s in samples], pa.bool_()),
        pa.array([teacher] * len(group), pa.string()),
        pa.array([licence] * len(group), pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def read_weighted(path: Path) -> Iterator[tuple[tuple[Message, ...], float]]:
    """`read_conversations` with the weight that selection gave each: 1 where the file has no such column."""
    file = pq.ParquetFile(path)
    named = ["messages", *(["weight"] if "weight" in file.schema_arrow.names else [])]
    for batch in file.iter_batches(columns=named):
        rows = batch.to_pylist()
        yield from ((tuple(map(Message.from_dict, row["messages"])), row.get("weight", 1.0)) for row in rows)


def read_conversations(path: Path) -> Iterator[tuple[Message, ...]]:
    """The `messages` of every row, in order; the last one is the answer."""
    for batch in pq.ParquetFile(path).iter_batches(columns=["messages"]):
        for turns in batch.column(0).to_pylist():
            yield tuple(Message.from_dict(turn) for turn in turns)
