"""Which weights a model has, so that nothing made by others is ever taken for theirs. No torch: a finished run asks.

A file is read once: its hash is remembered for as long as its size, times and inode stay what they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from potstill.errors import InputError, MissingEnvironment
from potstill.models.locate import cache_folder, hub_snapshot, locate
from potstill.recipe.scoring import ScoredBy
from potstill.recipe.teacher import Gguf, Local, Teacher

_SETTLED = 2_000_000_000  # nanoseconds after which a file that is written to again is sure to show another time


def identity(teacher: Teacher | ScoredBy) -> str:
    """Of a model in this process the hash of its weights; of a served one, or one that is not on this machine, its name
    and the revision that the recipe states."""
    here = isinstance(teacher.engine, Gguf | Local | None)
    found = weights(teacher.model, teacher.revision) if here else None
    return found or named(teacher.model, teacher.revision)


def named(model: str, revision: str | None) -> str:
    return model if revision is None else f"{model}@{revision}"


def weights(model: str, revision: str | None) -> str | None:
    """The hash of a folder's, a .gguf file's or a downloaded hub model's weights; None where they are not here."""
    try:
        located = locate(model)
    except (InputError, MissingEnvironment):
        return None
    if located.form == "gguf":
        assert located.path is not None
        return file_hash(located.path)
    folder = located.path or hub_snapshot(model, revision)
    return fingerprint(folder) if folder is not None and any(folder.glob("*.safetensors")) else None


def fingerprint(folder: Path) -> str:
    """SHA-256 over the weights and the tokenizer: the same before and after everything we do."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("tokenizer.json")]):
        digest.update(path.name.encode() + bytes.fromhex(file_hash(path)))
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, out of the cache where it was read before."""
    path, memory = path.resolve(), cache_folder() / "hashes.json"
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    known = _read(memory).get(str(path))
    if isinstance(known, list) and known[:-1] == state:
        return str(known[-1])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED:
        _write(memory, {**_read(memory), str(path): [*state, found]})
    return found


def _read(memory: Path) -> dict[str, Any]:
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(memory: Path, hashes: dict[str, Any]) -> None:
    """Whole or not at all; a cache that cannot be written costs time and nothing else."""
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=memory.parent, prefix=".hashes-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(hashes, file)
        Path(draft).replace(memory)
