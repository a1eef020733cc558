"""SQLite as every ledger opens it: WAL, so that a killed process loses at most its open transaction.

`synchronous=NORMAL`: survives the death of the process; a power cut may cost the last commits, never the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from potstill.errors import InputError

_FORMAT = 2  # of the tables; one more where what is in them changes
_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "trusted_schema=OFF", "busy_timeout=5000")


def connect(path: Path, schema: str) -> sqlite3.Connection:
    """A connection in autocommit mode with `schema` in place. Raises InputError where the file is no database, or one
    whose tables another Potstill made."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in _PRAGMAS:
            database.execute(f"PRAGMA {pragma}")
        _check_format(database, path)
        database.executescript(schema)
    except InputError:
        database.close()
        raise
    except sqlite3.DatabaseError as error:
        database.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise InputError(
            f"'{path}' is not a ledger: {error}",
            way_out="restore it or choose another run folder",
        ) from None
    return database


def _check_format(database: sqlite3.Connection, path: Path) -> None:
    if database.execute("PRAGMA user_version").fetchone()[0] == _FORMAT:
        return
    if database.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise InputError(f"'{path}' was written by another version of potstill", way_out="choose another run folder")
    database.execute(f"PRAGMA user_version={_FORMAT}")


@contextmanager
def transaction(database: sqlite3.Connection) -> Generator[None]:
    """All or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:  # a full disk rolls back by itself
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
