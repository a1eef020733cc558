"""Training examples as Parquet in the Hugging Face `messages` convention, provenance and licence in every row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.records import Example, Message
from potstill.store.files import drafted

_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("messages", pa.list_(_TURN)),
        ("choices", pa.list_(pa.string())),
        ("choice_p", pa.list_(pa.float64())),
        ("teacher", pa.string()),
        ("licence", pa.string()),
        ("labelled_by", pa.string()),
    ]
)


def write_examples(path: Path, examples: Sequence[Example], choices: Sequence[str]) -> None:
    """The last message of a row is the teacher's answer. Same examples, same bytes."""
    rows = [
        {
            "prompt_id": e.prompt_id,
            "messages": [
                {"role": m.role, "content": m.content}
                for m in (*e.messages, Message(role="assistant", content=e.answer))
            ],
            "choices": list(choices),
            "choice_p": list(e.choice_p),
            "teacher": e.teacher,
            "licence": e.licence,
            "labelled_by": e.labelled_by,
        }
        for e in examples
    ]
    with drafted(path) as draft:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), draft, compression="zstd")


def read_examples(path: Path) -> list[Example]:
    return [
        Example(
            prompt_id=row["prompt_id"],
            messages=tuple(Message.from_dict(turn) for turn in row["messages"][:-1]),
            answer=row["messages"][-1]["content"],
            choice_p=tuple(row["choice_p"]),
            teacher=row["teacher"],
            licence=row["licence"],
            labelled_by=row["labelled_by"],
        )
        for row in pq.read_table(path).to_pylist()
    ]
