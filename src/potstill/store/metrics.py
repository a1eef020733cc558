"""`metrics.jsonl`: one JSON object per line, one line per training step or validation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from potstill.store.files import write_atomic
from potstill.store.sinks import Sink

Row = dict[str, Any]


class Metrics:
    """The file, and the sinks that get the same rows from the first `rewind` until the block ends. `writes`: not in a
    process that leaves it to another."""

    def __init__(self, path: Path, sinks: Sequence[Sink] = (), *, writes: bool = True) -> None:
        self._path, self._sinks, self._writes = path, sinks, writes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()

    @property
    def folder(self) -> Path:
        """The run's."""
        return self._path.parent

    def append(self, row: Row) -> None:
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for sink in self._sinks:
            sink.put(row)

    def rows(self, arm: str | None = None) -> list[Row]:
        """All rows, or one arm's. A line torn by a crash is the last one of a step that will be taken again."""
        if not self._path.is_file():
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
        if not self._writes:
            return
        rows = self.rows()
        kept = [row for row in rows if row["arm"] != arm or row["step"] <= step]
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        seen = max((row["step"] for row in rows if row["arm"] == arm), default=0)
        for sink in self._sinks:
            sink.begin(arm, [row for row in kept if row["arm"] == arm], seen=seen)
