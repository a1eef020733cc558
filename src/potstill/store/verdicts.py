"""`verdicts.parquet`: every answer, kept or not, and what each check said of it. Read a batch at a time: of a million
rows a few thousand are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    columns = ["prompt_id", "index", "kept", "reason", "evidence", "findings"]
    for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH, columns=columns):
        for prompt_id, index, kept, reason, evidence, findings in zip(
            *(batch.column(name).to_pylist() for name in columns), strict=True
        ):
            said = tuple(Finding(**finding) for finding in findings)
            yield Ruling(prompt_id=prompt_id, index=index, kept=kept, reason=reason, evidence=evidence, findings=said)
