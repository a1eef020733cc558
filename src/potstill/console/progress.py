"""Who watches a run: bars on a terminal, lines in a log, JSON for programs. Ctrl-C reaches it too."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from threading import Event

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from potstill.console.live import Readings, in_words
from potstill.console.output import clean, out, say, say_json
from potstill.processes import Process
from potstill.records import Progress, Watch, unwatched

_interrupted = Event()


@contextmanager
def watching(*, as_json: bool) -> Generator[Watch]:
    """A Watch: JSON lines for programs, live bars on a terminal, else a line per stage and every 30 seconds. Of several
    processes the first one alone is seen; the others heed Ctrl-C."""
    if not Process.this().first:
        yield _heeding(unwatched)
    elif as_json:
        yield _heeding(_json_line)
    elif out.is_terminal:
        with _bars() as bars:
            yield _heeding(_Live(bars))
    else:
        yield _heeding(_Plain())


def interrupt(_number: int, _frame: object) -> None:
    """The handler of SIGINT and SIGTERM. The exception alone can get lost, where it is raised in the middle of somebody
    else's callback: whoever reports progress next is stopped all the same."""
    _interrupted.set()
    raise KeyboardInterrupt


def _heeding(watch: Watch) -> Watch:
    def heed(progress: Progress) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        watch(progress)

    return heed


def _json_line(p: Progress) -> None:
    facts = {"facts": p.facts} if p.facts else {}
    say_json({"stage": p.stage, "what": p.what, "done": p.done, "total": p.total, "note": p.note, **facts})
    sys.stdout.flush()


def _bars() -> Readings:
    return Readings(
        TextColumn("[bold]{task.fields[stage]:<9}"),
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=out,
    )


class _Live:
    """A bar for everything that is counted, and the readings of what is training."""

    def __init__(self, bars: Readings) -> None:
        self._bars = bars
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, p: Progress) -> None:
        key = (p.stage, p.what)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(clean(p.what), stage=p.stage, note="", total=p.total)
            self._bars.facts = {}
        if p.stage == "train":
            self._bars.facts = {**self._bars.facts, **p.facts}
        self._bars.update(self._tasks[key], completed=p.done, total=p.total, note=clean(p.note))


class _Plain:
    """A line when something begins, ends, or has been going for another 30 seconds."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}

    def __call__(self, p: Progress) -> None:
        key, now = (p.stage, p.what), time.monotonic()
        if p.done < p.total and now - self._last.get(key, -1e9) < 30:
            return
        self._last[key] = now
        said = f"{p.note}, {in_words(p.facts)}" if p.stage == "train" and p.facts else p.note
        say(f"{p.stage:<9} {clean(p.what)}  {p.done:,}/{p.total:,}  {clean(said)}")
