"""Batch files against a loopback provider: the same ledger, and nothing sent twice whoever dies."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from data_runs import command, exported, generate, query, write_recipe

from loopback import Loopback, loopback

ENGINE: dict[str, Any] = {"kind": "batches", "poll_seconds": 0.1, "requests_per_file": 25}


def recipe(folder: Path, server: Loopback, **more: Any) -> Path:
    prices = folder / "prices.yaml"
    prices.write_text("loopback: {input: 1, output: 2}\n")
    return write_recipe(folder, server.url, prompts=30, engine=ENGINE | more, n=2, prices=str(prices))


def test_batches_give_what_single_requests_give_at_half_the_price(tmp_path: Path) -> None:
    with loopback() as server:
        done = generate(recipe(tmp_path, server), tmp_path / "run")
        assert done.returncode == 0, done.stderr
        ledger = server.ledger()
        assert len(ledger["batches"]) == 3 and server.attempts() == 60
        one_by_one = recipe(tmp_path, server)
        assert (
            generate(
                one_by_one, tmp_path / "single", "--set", f"teacher.engine={{kind: server, url: {server.url}}}"
            ).returncode
            == 0
        )
        assert exported(tmp_path / "run") == exported(tmp_path / "single")
        paid, single = (
            query(tmp_path / r, "SELECT value FROM totals WHERE name = 'paid'")[0][0] for r in ("run", "single")
        )
        assert paid * 2 == single > 0


def test_requests_that_fail_in_a_batch_go_into_another(tmp_path: Path) -> None:
    with loopback(faults=0.3) as server:
        done = generate(recipe(tmp_path, server), tmp_path / "run")
        assert done.returncode == 0, done.stderr
        seen = server.ledger()["seen"]
        assert len(seen) == 60 and all(faults.count("ok") == 1 and faults[-1] == "ok" for faults in seen.values())
        assert query(tmp_path / "run", "SELECT count(*) FROM answers WHERE given_up IS NULL") == [(60,)]


@pytest.mark.parametrize("page", [100, 1])
def test_a_killed_run_waits_for_the_batches_it_had_sent(tmp_path: Path, page: int) -> None:
    """All of them: also those on the later pages of the provider's list."""
    with loopback(polls=12, page=page) as server:
        path = recipe(tmp_path, server)
        with subprocess.Popen(
            command(path, tmp_path / "run"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as child:
            while len(server.ledger()["batches"]) < 2:
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
        held = len(server.ledger()["batches"])
        done = generate(path, tmp_path / "run")
        assert done.returncode == 0, done.stderr
        seen = server.ledger()["seen"]
        assert held >= 2 and len(seen) == 60 and all(faults == ["ok"] for faults in seen.values())
        assert "requests whose outcome is not known" in done.stdout


def test_what_a_batch_refused_is_asked_anew_when_it_is_asked_otherwise(tmp_path: Path) -> None:
    with loopback(most_tokens=100) as server:
        path, run = recipe(tmp_path, server), tmp_path / "run"
        done = generate(path, run, "--set", "generate.n=1", "--set", "generate.max_tokens=101")
        assert done.returncode == 4 and "the server refused the request (HTTP 400, refused): no" in done.stderr
        mended = ("--set", "generate.n=1", "--set", "generate.max_tokens=101")
        mended = (*mended, "--set", "teacher.engine.limit_field=max_completion_tokens")
        assert generate(path, run, *mended).returncode == 0
        assert all(faults == ["400", "ok"] for faults in server.ledger()["seen"].values())
        assert query(run, "SELECT count(*) FROM answers WHERE given_up IS NULL") == [(30,)]


def test_a_batch_that_could_not_be_asked_about_is_not_sent_again(tmp_path: Path) -> None:
    with loopback(deaf=2, polls=3) as server:
        done = generate(recipe(tmp_path, server, retry_seconds=0.01), tmp_path / "run")
        assert done.returncode == 0 and "connection lost" in done.stdout
        assert len(server.ledger()["batches"]) == 3 and server.attempts() == 60


def test_nobody_there_is_told(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "http://127.0.0.1:9/v1", prompts=2, engine=ENGINE)
    done = generate(path, tmp_path / "run")
    assert done.returncode == 4 and "no server answers at http://127.0.0.1:9/v1" in done.stderr


def test_a_provider_that_does_not_name_its_batch_leaves_nobody_waiting(tmp_path: Path) -> None:
    with loopback(nameless=1) as server:
        path = recipe(tmp_path, server, attempts=2, retry_seconds=0.01)
        done = generate(path, tmp_path / "run", timeout=60)
        assert done.returncode == 4 and "the provider's reply has no 'id'" in done.stderr
