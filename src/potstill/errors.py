"""Everything that can go wrong and is not our bug, each with its exit code and its way out.

PotstillError                 1   (only ever raised through a subclass)
├── InputError                2   recipe, prompts, paths, run folders
├── MissingEnvironment        3   a package, program or device that is not there
├── TeacherError              4   the teacher or its server failed
├── BudgetReached             5
├── DiskError                 6   full or failing
├── LicenceRefused            7
├── GuardStopped              8   training went wrong and was stopped
└── Stopped                  75   SIGINT or SIGTERM; the same command resumes
"""

from __future__ import annotations

import errno
import sqlite3
from typing import ClassVar


class PotstillError(Exception):
    """One clear sentence: what is wrong, where, the value; then the way out."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, way_out: str = "") -> None:
        self.problem = problem
        self.way_out = way_out
        super().__init__(f"{problem}; {way_out}" if way_out else problem)


class InputError(PotstillError):
    exit_code = 2


class MissingEnvironment(PotstillError):
    exit_code = 3


class TeacherError(PotstillError):
    exit_code = 4


class BudgetReached(PotstillError):
    exit_code = 5


class DiskError(PotstillError):
    exit_code = 6


class LicenceRefused(PotstillError):
    exit_code = 7


class GuardStopped(PotstillError):
    exit_code = 8


class Stopped(PotstillError):
    exit_code = 75


_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}
_DISK_PHRASES = (
    "database or disk is full",
    "disk i/o error",
    "no space left on device",
    "file too",
)


def as_disk_error(error: Exception) -> DiskError | None:
    """The DiskError behind `error`, or None: SQLite, Rust and C libraries each say "full" their own way."""
    said = str(error).lower()
    is_disk = (
        (isinstance(error, OSError) and error.errno in _DISK_ERRNOS)
        or (isinstance(error, sqlite3.OperationalError) and any(p in said for p in _DISK_PHRASES))
        or "no space left on device" in said
    )
    if not is_disk:
        return None
    where = getattr(error, "filename", None)
    return DiskError(
        f"the disk refused a write{f' to {where}' if where else ''}: {error}",
        way_out="free some space and run the same command again, finished work is kept",
    )
