"""`verdicts.parquet`: every answer, kept or not, and what each check said of it. Read a batch at a time: of a million
rows a few thousand are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.records import Finding, Verdict

_FINDING = pa.struct([(name, pa.string()) for name in ("check", "opinion", "reason", "evidence")])
VERDICTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("evidence", pa.string()),
        ("score", pa.float64()),
        ("weight", pa.float64()),
        ("student_nats", pa.float64()),
        ("rescue", pa.int32()),
        ("findings", pa.list_(_FINDING)),
    ]
)
_PLAIN = ("prompt_id", "index", "kept", "reason", "evidence", "score", "weight")
_BATCH = 4096


def read_verdicts(path: Path) -> Iterator[Verdict]:
    """Every row in the order of the file: a prompt's answers stand together."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH, columns=[*_PLAIN, "findings"]):
        plain = (batch.column(name).to_pylist() for name in _PLAIN)
        for *values, findings in zip(*plain, _findings(batch.column("findings")), strict=True):
            yield Verdict(**dict(zip(_PLAIN, values, strict=True)), findings=findings)


def _findings(lists: pa.ListArray) -> Iterator[tuple[Finding, ...]]:  # pyright: ignore[reportUnknownParameterType]
    """Column by column: less than half of the time that a dict a finding would take."""
    parts = (part.to_pylist() for part in lists.flatten().flatten())
    said = (
        Finding(check=check, opinion=opinion, reason=reason, evidence=evidence)
        for check, opinion, reason, evidence in zip(*parts, strict=True)
    )
    return (tuple(islice(said, length)) for length in lists.value_lengths().to_pylist())
