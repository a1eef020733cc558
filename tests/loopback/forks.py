"""`potstill` command lines, each in a process of its own that need not import everything anew.

They are forked off a process that has imported everything and done nothing: starting Python and torch takes seven
seconds of a core.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from potstill.cli import main

ROOT = Path(__file__).resolve().parents[2]
_IMPORTED = (
    "potstill.train.stage",
    "potstill.evaluate.stage",
    "potstill.pipeline",
    "peft",
    "transformers.models.llama.modeling_llama",
    "transformers.integrations.peft",
)


class Forker:
    """One process after the other; `with Forker() as forker`. They run in the repository's folder."""

    def __enter__(self) -> Self:
        command = [sys.executable, __file__]
        # unbuffered: a line that was read ahead would not be seen by `over`
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._said()  # everything is imported
        self._running: int | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._process.communicate(timeout=60)

    def start(
        self,
        words: Sequence[str],
        *,
        out: Path | None = None,
        err: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Begin `potstill WORDS` with these variables and with its output in these files; the process's number."""
        assert self._process.stdin is not None
        self._end()
        files = [str(out or os.devnull), str(err) if err else None]
        job = {"words": list(words), "files": files, "environment": dict(environment or {})}
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._running = self._said()
        return self._running

    def over(self, patience: float) -> bool:
        """Whether it has ended, or does so within so many seconds."""
        return bool(select.select([self._process.stdout], [], [], patience)[0])

    def code(self) -> int:
        """How it ended, once it does: the number of a signal with a minus."""
        code = self._said()
        self._running = None
        return code

    def run(self, words: Sequence[str], folder: Path) -> tuple[int, str, str]:
        """To the end: exit code, standard output and standard error."""
        out, err = folder / "stdout", folder / "stderr"
        self.start(words, out=out, err=err)
        return self.code(), out.read_text(), err.read_text()

    def _end(self) -> None:
        """What a test that failed half-way left running must not answer for the next one."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._running, signal.SIGKILL)
            self.code()

    def _said(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def _fork_at_command() -> None:
    """A line of JSON in, the child's number out, and how it ended."""
    for name in _IMPORTED:
        importlib.import_module(name)
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        if not (pid := os.fork()):
            _live(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _live(words: list[str], files: list[str | None], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for number, path in enumerate(files, start=1):
        if path is not None:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = ["potstill", *words]
    code = 1
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    _fork_at_command()
