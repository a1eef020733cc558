"""`verdicts.parquet`: every answer, kept or not, and what each check said of it. Read a batch at a time: of a million
rows a few thousand are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.records import Finding

_FINDING = pa.struct([(name, pa.string()) for name in ("check", "opinion", "reason", "evidence")])
VERDICTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("evidence", pa.string()),
        ("score", pa.float64()),
        ("student_nats", pa.float64()),
        ("rescue", pa.int32()),
        ("findings", pa.list_(_FINDING)),
    ]
)
_BATCH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """One row. In an exam `kept` means right."""

    prompt_id: str
    index: int
    kept: bool
    reason: str
    evidence: str
    findings: tuple[Finding, ...]


def read_verdicts(path: Path) -> Iterator[Ruling]:
    """Every row in the order of the file: a prompt's answers stand together."""
    columns = ["prompt_id", "index", "kept", "reason", "evidence"]
    for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH, columns=[*columns, "findings"]):
        plain = (batch.column(name).to_pylist() for name in columns)
        rows = zip(*plain, _findings(batch.column("findings")), strict=True)
        for prompt_id, index, kept, reason, evidence, findings in rows:
            yield Ruling(
                prompt_id=prompt_id, index=index, kept=kept, reason=reason, evidence=evidence, findings=findings
            )


def _findings(lists: pa.ListArray) -> Iterator[tuple[Finding, ...]]:  # pyright: ignore[reportUnknownParameterType]
    """Column by column: less than half of the time that a dict a finding would take."""
    parts = (part.to_pylist() for part in lists.flatten().flatten())
    said = (
        Finding(check=check, opinion=opinion, reason=reason, evidence=evidence)
        for check, opinion, reason, evidence in zip(*parts, strict=True)
    )
    return (tuple(islice(said, length)) for length in lists.value_lengths().to_pylist())
