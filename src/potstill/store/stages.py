"""Which stages of a run finished, made from what, and what was measured on the way: tables of the run's ledger."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from potstill.store.database import Database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS stages (
    name TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, seconds REAL NOT NULL, finished REAL NOT NULL);
CREATE TABLE IF NOT EXISTS measured (
    arm TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (arm, name));
"""


class Stages(Database):
    """Open with `with Stages(run.ledger) as stages`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA)

    def finished(self, name: str) -> str | None:
        """The fingerprint under which the stage finished, or None."""
        row = self._db.execute("SELECT fingerprint FROM stages WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def finish(self, name: str, fingerprint: str, seconds: float) -> None:
        self._db.execute("INSERT OR REPLACE INTO stages VALUES (?, ?, ?, ?)", (name, fingerprint, seconds, time.time()))

    def forget(self, name: str) -> None:
        self._db.execute("DELETE FROM stages WHERE name = ?", (name,))

    def seconds(self) -> dict[str, float]:
        """What each finished stage took, in the order in which they finished."""
        return dict(self._db.execute("SELECT name, seconds FROM stages ORDER BY finished"))

    def put_measured(self, arm: str, values: Mapping[str, float]) -> None:
        """What was measured of an arm, in place of what was before."""
        with self.transaction():
            self._db.execute("DELETE FROM measured WHERE arm = ?", (arm,))
            self._db.executemany("INSERT INTO measured VALUES (?, ?, ?)", ((arm, n, v) for n, v in values.items()))

    def measured(self, arm: str) -> dict[str, float]:
        return dict(self._db.execute("SELECT name, value FROM measured WHERE arm = ?", (arm,)))
