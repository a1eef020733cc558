"""Processes that train, watched from outside and killed (SIGKILL) at a chosen moment.

A life is a process of its own that runs a command line (`forks.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from forks import Forker

Seen = Callable[[Path, float], bool]
"""Whether the moment has come, from what lies in the run folder; what is older than that time is of an earlier life."""

STUDENT = Path("arms") / "student"


@dataclass(frozen=True, slots=True)
class Moment:
    """`seen` is true, and still so `delay` seconds later: the process is stopped, looked at again, then killed."""

    seen: Seen
    delay: float = 0.0


class Missed(AssertionError):
    """The process came to its end before its moment did, or the moment was over before it could be killed."""


@dataclass(slots=True)
class Witness:
    """Every checkpoint that was seen: the SHA-256 of its tensors (weights, moments, average), by its step."""

    run: Path
    tensors: dict[int, set[str]] = field(default_factory=dict[int, set[str]])
    _known: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])

    def look(self) -> None:
        places = list[Path]()
        with contextlib.suppress(FileNotFoundError):  # all of them are dropped at the end
            places += (self.run / STUDENT / "checkpoints").glob("step-*")
        for place in places:
            with contextlib.suppress(FileNotFoundError):  # dropped while we look
                if (one := (place.name, place.stat().st_mtime_ns)) not in self._known:
                    manifest = json.loads((place / "manifest.json").read_text())
                    self.tensors.setdefault(manifest["step"], set()).add(manifest["files"]["tensors.safetensors"])
                    self._known.add(one)


class Lives:
    """One after the other; `with Lives() as lives`."""

    def __enter__(self) -> Self:
        self._forker = Forker().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._forker.__exit__()

    def live(self, words: Sequence[str], witness: Witness, until: Moment | None = None) -> None:
        """Run a command line to its end, which must be a good one, or to the moment. Raises Missed."""
        born = time.time()
        pid = self._forker.start(words, environment={"POTSTILL_CACHE": str(cache_of(witness.run))})
        while not self._forker.over(0.002):
            witness.look()
            if until is not None and until.seen(witness.run, born) and self._killed(pid, witness.run, until, born):
                return
        code = self._forker.code()
        assert code == 0, f"{' '.join(words)} ended with {code}"
        if until is not None:
            raise Missed("the process ended before its moment came")

    def _killed(self, pid: int, run: Path, moment: Moment, born: float) -> bool:
        if self._forker.over(moment.delay):
            return False
        os.kill(pid, signal.SIGSTOP)
        if not moment.seen(run, born):
            os.kill(pid, signal.SIGCONT)
            return False
        os.kill(pid, signal.SIGKILL)
        assert self._forker.code() == -signal.SIGKILL
        return True


# what can be seen of a run


def steps_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def at_birth(run: Path, born: float) -> bool:
    """Any time: the delay alone decides."""
    return True


def in_step(step: int) -> Seen:
    """This step or a later one is under way: the one before it is logged and saved, and nothing is being written."""

    def seen(run: Path, born: float) -> bool:
        logged = steps_logged(run)
        return logged >= step - 1 and _young(run / STUDENT / "checkpoints", f"step-{logged:06d}", born)

    return seen


def saving(step: int) -> Seen:
    """A checkpoint of this step or a later one is being written."""
    return lambda run, born: steps_logged(run) >= step and _young(run / STUDENT / "checkpoints", ".draft-*", born)


def reading_the_teacher(run: Path, born: float) -> bool:
    """Signals are being computed: their cache is there, and no step has been taken."""
    return any(cache_of(run).rglob("cache.json")) and steps_logged(run) == 0


def keeping_signals(run: Path, born: float) -> bool:
    """A shard of signals is being written, or just was."""
    folders = cache_of(run).glob("signals/*")
    return steps_logged(run) == 0 and any(_young(folder, "*shard-*", born) for folder in folders)


def saving_the_model(run: Path, born: float) -> bool:
    """All steps are taken; the model is being written, or is there and not booked yet."""
    return _young(run, ".model-*", born) or ((run / "model").exists() and not (run / STUDENT / "trained.json").exists())


def cache_of(run: Path) -> Path:
    return run.parent / f"{run.name}-cache"


def _young(folder: Path, pattern: str, born: float) -> bool:
    with contextlib.suppress(FileNotFoundError):  # it has its name now
        return any(path.stat().st_mtime > born for path in folder.glob(pattern))
    return False


def result(run: Path) -> dict[str, Any]:
    """What a run must come to, however often it was killed: model files by their hash, the log and the books without
    what a clock says."""
    files = sorted(path for path in (run / "model").rglob("*") if path.is_file())
    student = json.loads((run / STUDENT / "trained.json").read_text())
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "model": {path.name: sha256(_clockless(path.read_bytes())).hexdigest() for path in files},
        "student": _timeless(student),
        "metrics": [_timeless(row) for row in log],
    }


def _clockless(file: bytes) -> bytes:
    """The card says how long the training took."""
    return re.sub(rb", [\d.]+ s\. All training", b". All training", file)


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if "second" not in name}
