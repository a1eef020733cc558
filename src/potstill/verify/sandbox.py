"""Somebody else's Python, where it can do no harm: no network, a read-only system, a private /tmp, and limits on
seconds, memory, processes and file sizes. Bubblewrap makes the walls.

Run as root, the real user id is dropped *before* bubblewrap: a limit on processes counts them by real user, and root is
exempt from it. Memory is limited for each process, and for all together where a memory cgroup can be made.

What is contained is damage, not cheating: a program that goes looking for the harness in its own process could forge a
pass. The sandbox refuses to run without its walls.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from potstill.errors import MissingEnvironment

_PROCESSES = 16
_FILE_BYTES = 16 << 20
_SCRATCH_BYTES = 64 << 20
_SAID_BYTES = 16 << 10
_NOBODY = "65534"

# Runs the program, then the tests in the same namespace, and says at the very end, on a descriptor of its own, that
# both came to their end. exit() on the way there is no pass.
_HARNESS = """
import json, os, sys, traceback
asked = json.loads(sys.stdin.buffer.read())
out = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2): os.dup2(null, fd)
error = None
space = {"__name__": "__main__"}
try:
    for part in ("program", "tests"):
        exec(compile(asked[part], "<" + part + ">", "exec"), space)
except BaseException as e:
    error = "".join(traceback.format_exception_only(type(e), e))[-2000:].strip()
os.write(out, (chr(10) + json.dumps({"mark": asked["mark"], "error": error})).encode())
os._exit(0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """`passed`: program and tests came to their end. `said`: the error, or why there is no word from it."""

    how: Literal["passed", "failed", "too slow"]
    said: str = ""


def run_python(program: str, tests: str, *, seconds: float, memory_mib: int) -> Ran:
    """Run `program`, then `tests` in the same namespace. Raises MissingEnvironment where there is no sandbox."""
    mark = secrets.token_hex(16)
    asked = json.dumps({"program": program, "tests": tests, "mark": mark}).encode()
    with _memory_group(memory_mib) as group:
        said, slow = _run(_command(seconds, memory_mib, group), asked, seconds)
    if slow:
        return Ran(how="too slow", said=f"longer than {seconds:g} s")
    try:
        last = json.loads(said.rsplit(b"\n", 1)[-1])
    except ValueError:
        return Ran(how="failed", said="it ended without a word: killed, out of memory, or it left early")
    if not isinstance(last, dict) or last.get("mark") != mark:
        return Ran(how="failed", said="it wrote over its own verdict")
    error = last.get("error")
    return Ran(how="failed", said=str(error)) if error is not None else Ran(how="passed")


def _run(command: list[str], asked: bytes, seconds: float) -> tuple[bytes, bool]:
    """What it wrote (at most so much: a flood is cut, and the process killed), and whether its time ran out."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    slow = threading.Event()

    def end() -> None:
        slow.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        assert process.stdin is not None and process.stdout is not None
        with process.stdout:
            try:
                with process.stdin:
                    process.stdin.write(asked)
            except BrokenPipeError:
                pass  # it was gone before it read the program; what it said tells
            said = process.stdout.read(_SAID_BYTES)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    return said, slow.is_set()


def _command(seconds: float, memory_mib: int, group: Path | None) -> list[str]:
    walls = require_sandbox()
    limits = {
        "nproc": _PROCESSES,
        "as": memory_mib << 20,
        "fsize": _FILE_BYTES,
        "cpu": int(seconds) + 1,
        "nofile": 64,
        "core": 0,
    }
    joins = ["/bin/sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"] if group else []
    drops = [walls.setpriv, "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups"] if os.geteuid() == 0 else []
    inside = [walls.prlimit, *(f"--{name}={value}" for name, value in limits.items())]
    return [*joins, *drops, walls.bwrap, *_walls(), "--", *inside, walls.python, "-I", "-S", "-c", _HARNESS]


def _walls() -> list[str]:
    links: list[str] = []
    for place in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        path = Path(place)
        if path.is_symlink():
            links += ["--symlink", str(path.readlink()), place]
        elif path.is_dir():
            links += ["--ro-bind", place, place]
    scratch = ["--size", str(_SCRATCH_BYTES), "--tmpfs"]
    return [
        *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
        *("--ro-bind", "/usr", "/usr", *links, "--proc", "/proc", "--dev", "/dev"),
        *(*scratch, "/dev/shm", *scratch, "/tmp", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"),
        *("--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin:/bin", "--hostname", "sandbox"),
    ]


@dataclass(frozen=True, slots=True)
class Walls:
    """Where the programs are that the sandbox is made of."""

    bwrap: str
    setpriv: str
    prlimit: str
    python: str


@cache
def require_sandbox() -> Walls:
    """Raises MissingEnvironment naming the package to install. The system's Python is used: whoever runs the program is
    nobody, and cannot see into a home."""
    packages = {"bwrap": "bubblewrap", "setpriv": "util-linux", "prlimit": "util-linux", "python3": "python3"}
    places = {name: shutil.which(name, path="/usr/bin:/bin:/usr/sbin") for name in packages}
    if sys.platform != "linux":
        raise MissingEnvironment("code is only run in a sandbox, and that needs Linux", way_out="verify on Linux")
    if missing := [name for name, place in places.items() if place is None]:
        raise MissingEnvironment(
            f"code is only run in a sandbox, and '{missing[0]}' is not there",
            way_out=f"install the package {packages[missing[0]]} (Debian: apt-get install {packages[missing[0]]})",
        )
    return Walls(*map(str, places.values()))


@contextmanager
def _memory_group(memory_mib: int) -> Generator[Path | None]:
    """A cgroup with a limit on the memory of all processes together; None where none can be made."""
    root = Path("/sys/fs/cgroup")
    unified = (root / "cgroup.controllers").is_file()
    group = (root if unified else root / "memory") / f"potstill-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        group.mkdir()
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(memory_mib << 20))
    except OSError:
        if group.is_dir():
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """The kernel lets go of a group a moment after its last process."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            threading.Event().wait(0.01)
