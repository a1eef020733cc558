"""Several processes of one training, for tests: `python ranks.py FOLDER < jobs`, a job a line.

Imports are paid once: every process is forked from here, with the environment that torchrun would give it. A job is
{"run", "count", "set", "half", "stop", "fail"}: `half` computes in bf16, `stop` raises KeyboardInterrupt in all after
that step, `fail` ends the last process without a word. The answer is a line: exit codes, what was said, seconds,
whether torch.distributed was initialised in the end.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch

from potstill import cli, console
from potstill.console import progress as watching
from potstill.records import Progress

torch.set_num_threads(1)


def process(rank: int, port: int, folder: Path, job: dict[str, Any]) -> None:
    said = os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    os.dup2(said, 1)
    os.environ["POTSTILL_PRECISION"] = "bf16" if job.get("half") else "fp32"
    last = rank == job["count"] - 1
    if job["count"] > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["count"]), **address)
    heeding = watching._heeding

    def stopping(watch: Any) -> Any:
        def heed(progress: Progress) -> None:
            if progress.what == "student" and progress.done == job.get("stop"):
                raise KeyboardInterrupt
            if progress.what == "student" and progress.done == job.get("fail") and last:
                os.kill(os.getpid(), signal.SIGKILL)
            watch(progress)

        return heeding(heed)

    watching._heeding = stopping
    sets = [word for override in job.get("set", ()) for word in ("--set", override)]
    code = cli.execute(
        [job.get("verb", "train"), str(folder / "recipe.yaml"), "--run", str(folder / job["run"]), *sets]
    )
    sys.stdout.flush()
    console.err.file.flush()
    Path(folder / f"distributed-{rank}").write_text(str(torch.distributed.is_initialized()))
    os._exit(code)


def main(folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start = time.perf_counter()
        ranks = [fork.Process(target=process, args=(rank, port, folder, job)) for rank in range(job["count"])]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join(300)
            one.kill()
            one.join()
        answer = {
            "codes": [one.exitcode for one in ranks],
            "said": [(folder / f"said-{rank}").read_text() for rank in range(job["count"])],
            "seconds": time.perf_counter() - start,
            "distributed": (folder / "distributed-0").read_text() == "True",
        }
        print(json.dumps(answer), flush=True)


main(Path(sys.argv[1]))
