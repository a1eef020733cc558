"""`metrics.jsonl`: one JSON object a line, one line a training step or validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from potstill.store.files import write_atomic

Row = dict[str, Any]


class Metrics:
    """`path` None: of a process that leaves writing to another."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def append(self, row: Row) -> None:
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, arm: str | None = None) -> list[Row]:
        """All rows, or one arm's. A line torn by a crash is the last one of a step that will be taken again."""
        if self._path is None or not self._path.is_file():
            return []
        rows: list[Row] = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return [row for row in rows if arm is None or row["arm"] == arm]

    def rewind(self, arm: str, step: int) -> None:
        """Drop the arm's rows after `step`: training goes on from there."""
        if self._path is None:
            return
        kept = [row for row in self.rows() if row["arm"] != arm or row["step"] <= step]
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept))
