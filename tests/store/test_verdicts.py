"""Verdicts come back as they were written, whatever the batches cut."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from potstill.records import Finding, Verdict
from potstill.store.tables import table
from potstill.store.verdicts import VERDICTS, read_verdicts

PLAIN = ("prompt_id", "index", "kept", "reason", "evidence", "score", "weight")


def test_every_row_comes_back_with_its_own_findings(tmp_path: Path) -> None:
    said = [
        Finding(opinion="failed" if i % 3 else "passed", reason=f"why {i}", evidence="é" * (i % 4), check=f"c{i}@1")
        for i in range(5)
    ]
    rows = [
        Verdict(
            prompt_id=f"p{i // 3}",
            index=i % 3,
            kept=i % 2 == 0,
            reason=f"r{i}",
            evidence="",
            score=None if i % 2 else i / 12_345,
            weight=float(i % 5),
            findings=tuple(said[(i + k) % 5] for k in range(i % 4)),
        )
        for i in range(12_345)  # more than one row group, batches across its edge, rows without findings
    ]
    path = tmp_path / "verdicts.parquet"
    with table(path, VERDICTS) as put:
        for row in rows:
            put(
                {
                    **{k: getattr(row, k) for k in PLAIN},
                    "findings": [asdict(f) for f in row.findings],
                }
            )
    assert list(read_verdicts(path)) == rows
