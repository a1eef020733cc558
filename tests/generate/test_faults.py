"""Nothing lost, nothing doubled, and our books equal the server's, whatever the server does."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_runs import attempts_by_identity, command, exported, generate, query, write_recipe

from loopback import BILLED, Loopback, loopback

ENGINE = {"deadline": 1.5, "in_flight": 256, "start_in_flight": 64, "attempts": 20, "max_reply_bytes": 100_000}


def check_books(server: Loopback, run: Path) -> None:
    """Every request that the server saw is an attempt of ours, and billed ones are "read" or "maybe"."""
    seen, ours = server.ledger()["seen"], attempts_by_identity(run)
    assert {identity: len(what) for identity, what in seen.items()} == {i: len(s) for i, s in ours.items()}
    for identity, faults in seen.items():
        theirs = Counter(
            "read" if f == "ok" else "maybe" if f in BILLED or f == "reset before" else "free" for f in faults
        )
        assert theirs == Counter(ours[identity]), (identity, faults, ours[identity])


def check_terminal(run: Path, prompts: int, n: int) -> None:
    table = pq.read_table(run / "examples" / "answers.parquet", columns=["prompt_id", "index"]).to_pylist()
    pairs = [(row["prompt_id"], row["index"]) for row in table]
    assert len(pairs) == len(set(pairs)) == prompts * n
    assert query(run, "SELECT count(*), count(settled) FROM asks") == [(prompts, prompts)]
    assert query(run, "SELECT count(*) FROM attempts WHERE state IN ('sent', 'replied')") == [(0,)]


def faulty(tmp_path: Path, *, prompts: int, together: int) -> None:
    engine = {**ENGINE, "samples_per_request": together}
    took: dict[float, float] = {}
    for share in (0.0, 0.3):
        folder = tmp_path / str(share)
        folder.mkdir()
        with loopback(delay=0.05, faults=share, seed=4, huge=200_000) as server:
            recipe = write_recipe(folder, server.url, prompts=prompts, engine=engine, n=4)
            start = time.monotonic()
            done = generate(recipe, folder / "run")
            took[share] = time.monotonic() - start
            assert done.returncode == 0, done.stderr
            check_terminal(folder / "run", prompts, 4)
            check_books(server, folder / "run")
    assert exported(tmp_path / "0.3" / "run") == exported(tmp_path / "0.0" / "run")
    print(f"clean {took[0.0]:.1f} s, 30 % faults {took[0.3]:.1f} s, {took[0.3] / took[0.0]:.2f} times")
    assert took[0.3] <= 3 * took[0.0]


def test_ten_thousand_prompts_times_four_at_thirty_percent_faults(tmp_path: Path) -> None:
    faulty(tmp_path, prompts=10_000, together=4)


@pytest.mark.soak
def test_forty_thousand_single_requests_at_thirty_percent_faults(tmp_path: Path) -> None:
    faulty(tmp_path, prompts=10_000, together=1)


def killed(tmp_path: Path, *, kills: int, in_flight: int) -> None:
    """Kill one run again and again, each time after the server has seen a random number of further requests."""
    engine = {"in_flight": in_flight, "start_in_flight": in_flight}
    with loopback(delay=0.1) as server:
        recipe = write_recipe(tmp_path, server.url, prompts=16 * kills, engine=engine, n=2)
        assert generate(recipe, tmp_path / "whole").returncode == 0
        before = server.attempts()
        draw = random.Random(kills)
        for number in range(kills):
            until = server.attempts() + draw.randint(2, 45)
            with subprocess.Popen(
                command(recipe, tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as child:
                while server.attempts() < until:
                    time.sleep(0.01 * draw.random())
                    assert child.poll() is None, f"finished before kill {number}"
                child.send_signal(signal.SIGKILL)
            assert query(tmp_path / "run", "SELECT count(*) FROM attempts WHERE state = 'sent'")[0][0] <= in_flight
        done = generate(recipe, tmp_path / "run")
        assert done.returncode == 0, done.stderr
        check_terminal(tmp_path / "run", 16 * kills, 2)
        assert exported(tmp_path / "run") == exported(tmp_path / "whole")
        repeated = server.attempts() - before - 32 * kills
        unknown = query(tmp_path / "run", "SELECT count(*) FROM attempts WHERE failure = 'outcome unknown'")[0][0]
        assert repeated <= unknown <= kills * in_flight
        print(f"{kills} kills: {repeated} of {32 * kills} requests repeated, {unknown} outcomes unknown")
        assert f"({unknown:,} requests whose outcome is not known)" in done.stdout


def test_twenty_five_kills_lose_nothing_and_repeat_only_what_was_in_flight(tmp_path: Path) -> None:
    killed(tmp_path, kills=25, in_flight=16)


@pytest.mark.soak
def test_two_hundred_kills(tmp_path: Path) -> None:
    killed(tmp_path, kills=200, in_flight=16)


def test_an_interrupt_keeps_what_came_home_and_exits_75(tmp_path: Path) -> None:
    with loopback(delay=0.2) as server:
        recipe = write_recipe(tmp_path, server.url, prompts=400, engine={"in_flight": 16}, n=1)
        with subprocess.Popen(
            command(recipe, tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as child:
            while server.attempts() < 40:
                time.sleep(0.02)
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=30)
        assert child.returncode == 75, said
        assert said == "error: stopped, every answer is kept; the same command goes on from here\n"
        check_books(server, tmp_path / "run")
        assert query(tmp_path / "run", "SELECT count(*) FROM attempts WHERE state != 'read'") == [(0,)]
        kept = server.attempts()
        assert generate(recipe, tmp_path / "run").returncode == 0
        assert server.attempts() == 400 and kept < 400


def limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an undisturbed run of the recipe below exports."""
    folder = tmp_path_factory.mktemp("whole")
    with loopback() as server:
        assert generate(write_recipe(folder, server.url, prompts=300, n=4), folder / "run").returncode == 0
    return exported(folder / "run")


@pytest.mark.parametrize("kilobytes", [0, 4, 40, 70, 100, 150, 250, 400, 600, 900])
def test_a_full_disk_exits_6_and_nothing_is_corrupt(tmp_path: Path, kilobytes: int, whole: bytes) -> None:
    """The kernel refuses every write past a size, wherever the run then is: recipe, ledger, log, Parquet."""
    with loopback() as server:
        recipe = write_recipe(tmp_path, server.url, prompts=300, n=4)
        done = generate(recipe, tmp_path / "run", preexec_fn=lambda: limit_file_size(kilobytes * 1024))
        assert done.returncode == 6, (done.returncode, done.stdout, done.stderr)
        assert done.stderr.startswith("error: the disk refused a write") and "Traceback" not in done.stderr
        if (tmp_path / "run" / "ledger.sqlite").exists():
            assert query(tmp_path / "run", "PRAGMA integrity_check") == [("ok",)]
        done = generate(recipe, tmp_path / "run")
        assert done.returncode == 0, done.stderr
        check_terminal(tmp_path / "run", 300, 4)
        assert exported(tmp_path / "run") == whole


def test_an_edited_recipe_asks_only_for_what_is_new(tmp_path: Path) -> None:
    with loopback() as server:
        recipe = write_recipe(tmp_path, server.url, prompts=20, n=2)
        run = tmp_path / "run"

        def asked(*more: str) -> int:
            before = server.attempts()
            done = generate(recipe, run, *more)
            assert done.returncode == 0, done.stderr
            return server.attempts() - before

        assert asked() == 40
        assert asked() == 0
        assert asked("--set", "generate.n=3") == 20
        assert asked("--set", "generate.max_tokens=4000") == 0  # finished answers fit any limit
        assert asked("--set", "generate.temperature=0.5", "--limit", "5") == 10
        assert asked("--set", "prompts.licence=apache-2.0") == 0
        shutil.rmtree(run / "examples")
        assert asked() == 0 and len(exported(run)) > 0
