"""SQLite as every ledger opens it: WAL, so that a killed process loses at most its open transaction.

`synchronous=NORMAL`: survives the death of the process; a power cut may cost the last commits, never the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from potstill.errors import InputError

_FORMAT = 2  # of the tables; one more where what is in them changes
_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "trusted_schema=OFF", "busy_timeout=5000")


class Database:
    """Tables of a file, in autocommit mode: open with `with`. Raises InputError where the file is no database, or one
    whose tables another Potstill made."""

    def __init__(self, path: Path, schema: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            for pragma in _PRAGMAS:
                self._db.execute(f"PRAGMA {pragma}")
            _check_format(self._db, path)
            self._db.executescript(schema)
        except (InputError, sqlite3.DatabaseError) as error:
            self._db.close()
            if isinstance(error, InputError | sqlite3.OperationalError):
                raise
            raise InputError(
                f"'{path}' is not a ledger: {error}",
                way_out="restore it or choose another run folder",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """All or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk rolls back by itself
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _check_format(database: sqlite3.Connection, path: Path) -> None:
    if database.execute("PRAGMA user_version").fetchone()[0] == _FORMAT:
        return
    if database.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise InputError(f"'{path}' was written by another version of potstill", way_out="choose another run folder")
    database.execute(f"PRAGMA user_version={_FORMAT}")
