"""Atomic writes: a reader sees the old file, the new file, or none, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def drafted(path: Path) -> Generator[Path]:
    """A file beside `path` to write to. At the end of the block it is flushed to disk and renamed over `path`; whatever
    goes wrong, Ctrl-C included, it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.chmod(0o644)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: str | bytes) -> None:
    with drafted(path) as draft:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)
