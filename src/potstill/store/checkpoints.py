"""Checkpoints of one arm: `step-000120/` with the tensors as safetensors (of several processes: each its parts) and the
rest as JSON; no pickle.

A checkpoint is written under a temporary name and renamed, so one that has its name was whole. Its manifest holds the
SHA-256 of every file and of itself: one that was damaged since is told from a whole one, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

State = Mapping[str, Any]

_WHOLE = "tensors.safetensors"
_MANIFEST = "manifest.json"


class Checkpoints:
    """The last two checkpoints and the one with the best score, if scores are given, are kept."""

    def __init__(self, folder: Path, *, better: Literal["smaller", "larger"] = "smaller") -> None:
        self._folder, self._better = folder, better
        self._damage: dict[str, str] = {}

    @property
    def damage(self) -> tuple[str, ...]:
        """One sentence for each damaged checkpoint that was come across."""
        return tuple(self._damage.values())

    @contextmanager
    def draft(self, step: int, state: State, *, score: float | None = None) -> Generator[Path]:
        """A folder for the tensors' files. At the end of the block it becomes the checkpoint, sealed; those of later
        steps, from which training did not go on, are dropped."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=".draft-"))
        try:
            yield draft
            (draft / "state.json").write_text(json.dumps({**state, "step": step}), encoding="utf-8")
            names = sorted(path.name for path in draft.iterdir())
            with ThreadPoolExecutor(1) as beside:  # the disk works while we hash
                flushed = beside.submit(_flush, *(draft / name for name in names))
                files = {name: _hash(draft / name) for name in names}
                flushed.result()
            (draft / _MANIFEST).write_text(_sealed({"step": step, "score": score, "files": files}), encoding="utf-8")
            _flush(draft / _MANIFEST)
            place = self._folder / f"step-{step:06d}"
            shutil.rmtree(place, ignore_errors=True)  # a damaged one, or one of another fingerprint
            draft.replace(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._prune(step)

    def newest_unread(self) -> tuple[Path, dict[str, Any]] | None:
        """Folder and state of the newest whole checkpoint, or None where there is none: `tensors_in` reads the rest.
        See `damage`."""
        return self._first_whole(reversed(self._all()))

    def best_unread(self) -> tuple[Path, dict[str, Any]] | None:
        """The same of the whole checkpoint with the best score, or None where none has one."""
        return self._first_whole(self._by_score())

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _first_whole(self, places: Iterable[Path]) -> tuple[Path, dict[str, Any]] | None:
        for place in places:
            if wrong := _what_is_wrong(place):
                self._damage[place.name] = f"checkpoint '{place}' is damaged: {wrong}; it is passed over"
                continue
            return place, json.loads((place / "state.json").read_text(encoding="utf-8"))
        return None

    def _prune(self, step: int) -> None:
        for draft in self._folder.glob(".draft-*"):  # of a process that was killed
            shutil.rmtree(draft)
        current = [place for place in self._all() if _step(place) <= step]
        kept = {*current[-2:], *[place for place in self._by_score() if place in current][:1]}
        for place in self._all():
            if place not in kept:
                shutil.rmtree(place)

    def _by_score(self) -> list[Path]:
        """Those with a score, best first; of equals the later one."""
        scored: list[tuple[float, Path]] = []
        for place in self._all():
            manifest = _read_manifest(place)
            if manifest and manifest["score"] is not None:
                sign = 1 if self._better == "smaller" else -1
                scored.append((sign * manifest["score"], place))
        return [place for _, place in sorted(scored, key=lambda one: (one[0], -_step(one[1])))]

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"), key=_step)


def write_tensors(draft: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whole, by one process."""
    save_file(dict(tensors), draft / _WHOLE)


def tensors_in(place: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's folder, whole, whoever wrote them."""
    if (place / _WHOLE).is_file():
        return load_file(place / _WHOLE)
    from potstill.store.parts import read_whole  # torch.distributed, where several processes wrote

    return read_whole(place)


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def _sealed(body: Mapping[str, Any]) -> str:
    """The body and its own SHA-256 in one fixed spelling, so that no byte can differ unseen."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, sort_keys=True)


def _read_manifest(place: Path) -> dict[str, Any] | None:
    """None where it is missing or not what was written."""
    try:
        text = (place / _MANIFEST).read_bytes().decode()
        body = json.loads(text)
        del body["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return body if text == _sealed(body) else None


def _what_is_wrong(place: Path) -> str | None:
    manifest = _read_manifest(place)
    if manifest is None:
        return f"{_MANIFEST} is missing or not what was written"
    if manifest["step"] != _step(place):
        return f"{_MANIFEST} is that of step {manifest['step']}"
    for name, digest in manifest["files"].items():
        if not (place / name).is_file():
            return f"{name} is missing"
        if _hash(place / name) != digest:
            return f"{name} is not what was written"
    return None


def _flush(*paths: Path) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
