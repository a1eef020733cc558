"""Ours, a bare aiohttp loop, bespokelabs-curator and distilabel against the same loopback server, in one run.

    python benchmarks/generate.py --peers FOLDER [--write docs/results/generate.md]

FOLDER holds a virtual environment for each peer (`make bench-generate` makes them). Every tool has 1,000 requests in
flight; rows per second are from the call to the last row on disk (the bare loop writes nothing), without start-up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "loopback"))
from data_runs import write_recipe
from pages import replace_table

from loopback import loopback
from potstill.engines.server import ServerSampler
from potstill.generate.collect import Asking, collect, export, load_asks
from potstill.recipe import load_recipe
from potstill.recipe.teacher import Server
from potstill.records import unwatched
from potstill.store.requests import Requests
from potstill.store.run import open_run

IN_FLIGHT, DELAY = 1000, 0.5
PEERS = {"bespokelabs-curator": "curator_peer.py", "distilabel": "distilabel_peer.py"}


class Watched(ServerSampler):
    """Measures how late the event loop wakes a sleeper."""

    lag: list[float]

    async def __aenter__(self) -> Self:
        self.lag = []
        self._watcher = asyncio.create_task(self._watch())
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        await super().__aexit__(kind, error, trace)

    async def _watch(self) -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.01)
            self.lag.append(time.perf_counter() - start - 0.01)


def ours(url: str, prompts: int) -> tuple[float, float]:
    """(seconds, p99 of the loop's lag in seconds), reading the prompts, the ledger and the Parquet included."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = {"in_flight": IN_FLIGHT, "start_in_flight": IN_FLIGHT, "deadline": 60.0}
        recipe = load_recipe(write_recipe(folder, url, prompts=prompts, engine=engine, n=1))
        assert isinstance(recipe.teacher.engine, Server)
        sampler = Watched(recipe.teacher, recipe.generate, recipe.teacher.engine)
        start = time.perf_counter()
        with open_run(folder / "run", recipe) as run, Requests(run.ledger) as requests:
            load_asks(recipe.request, requests)
            collect(recipe.request, requests, sampler, Asking(most=1), unwatched)
            assert export(recipe, requests, folder / "answers.parquet", most=1) == prompts
        return time.perf_counter() - start, statistics.quantiles(sampler.lag, n=100)[98]


def bare(url: str, prompts: int) -> float:
    """The same requests by the shortest loop there is; keeps nothing."""

    async def run() -> None:
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def one(session: aiohttp.ClientSession, number: int) -> None:
            turns = [{"role": "user", "content": f"what of film {number}?"}]
            asked = {"model": "loopback", "temperature": 1.0, "top_p": 1.0, "messages": turns, "max_tokens": 512}
            async with gate, session.post(f"{url}/chat/completions", json=asked) as reply:
                assert json.loads(await reply.read())["choices"]

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(one(session, number) for number in range(prompts)))

    start = time.perf_counter()
    asyncio.run(run())
    return time.perf_counter() - start


def peer(name: str, python: Path, url: str, prompts: int) -> tuple[float | None, str]:
    """(seconds or None, what it said last)."""
    script = Path(__file__).parent / "peers" / PEERS[name]
    environment = {**os.environ, "TELEMETRY_ENABLED": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [str(python), str(script), url, str(prompts), str(IN_FLIGHT)],
        capture_output=True, text=True, check=False, env=environment, timeout=600,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    return (float(said[-1].split()[1]), "") if said else (None, done.stderr[-300:])


def peer_version(python: Path, name: str) -> str:
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--peer-prompts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    with loopback(delay=DELAY) as server:
        pairs = [(bare(server.url, options.prompts), ours(server.url, options.prompts)) for _ in range(options.rounds)]
        bare_rate = statistics.median(options.prompts / seconds for seconds, _ in pairs)
        our_rate = statistics.median(options.prompts / seconds for _, (seconds, _) in pairs)
        lag = max(lag for _, (_, lag) in pairs)
        lines = [
            f"| bare aiohttp {version('aiohttp')}, keeps nothing | {bare_rate:,.0f} | {our_rate / bare_rate:.2f} |",
            f"| **Potstill** | **{our_rate:,.0f}** | 1 |",
        ]
        for name in PEERS:
            python = options.peers / name / "bin" / "python"
            seconds, why = peer(name, python, server.url, options.peer_prompts)
            if seconds is None:
                lines.append(f"| {name} | did not run: {why.splitlines()[-1] if why else 'no output'} | |")
                continue
            rate = options.peer_prompts / seconds
            lines.append(f"| {name} {peer_version(python, name)} | {rate:,.0f} | {our_rate / rate:.1f} |")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table = "\n".join(
        [
            "| tool | rows/s | Potstill is times as fast |",
            "|---|---|---|",
            *lines,
            "",
            f"Event-loop lag of Potstill: p99 {lag * 1000:.0f} ms (worst of {options.rounds} rounds). Peak memory of "
            f"the benchmark process: {memory:.0f} MB. {options.prompts:,} prompts per round for the first two (median "
            f"of {options.rounds} rounds, interleaved), {options.peer_prompts:,} for the others. Python "
            f"{platform.python_version()}, {os.cpu_count()} cores shared with the server, {time.strftime('%Y-%m-%d')}.",
        ]
    )
    print(table)
    if options.write:
        replace_table(options.write, "table", table)


if __name__ == "__main__":
    main()
