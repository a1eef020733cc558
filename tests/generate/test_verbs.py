"""The verbs a person types: check, a probe, generate, runs; and what they say when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data_runs import generate, query, write_recipe

from loopback import loopback
from potstill.cli import execute
from potstill.pipeline import Run
from potstill.recipe import load_recipe


def potstill(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "potstill", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_probe_asks_the_first_prompts_once_and_estimates_the_rest(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("loopback: {input: 100, output: 1000}\n")
    with loopback() as server:
        path = write_recipe(tmp_path, server.url, prompts=200, n=2, max_tokens=64, prices=str(prices))
        plan = potstill("check", path, "--json", cwd=tmp_path)
        assert plan.returncode == 0 and server.attempts() == 0
        assert json.loads(plan.stdout)["requests"] == 400
        probed = potstill("check", path, "--probe", "20", "--run", "run", "--json", cwd=tmp_path)
        assert probed.returncode == 0 and server.attempts() == 40, probed.stderr
        low, middle, high = json.loads(probed.stdout.splitlines()[-1])["estimate"]["dollars"]
        assert generate(path, tmp_path / "run").returncode == 0
        assert server.attempts() == 400  # the probe's answers were not asked for again
        paid = query(tmp_path / "run", "SELECT value FROM totals WHERE name = 'paid'")[0][0] / 1e12
        assert low < middle < high and 0.8 * paid < middle < 1.2 * paid
        assert paid < json.loads(plan.stdout)["dollars_at_most"]


def test_runs_shows_how_far_the_answers_are(tmp_path: Path) -> None:
    with loopback() as server:
        path = write_recipe(tmp_path, server.url, prompts=10)
        assert generate(path, tmp_path / "runs" / "data", "--limit", "4").returncode == 0
    found = json.loads(potstill("runs", "--json", cwd=tmp_path).stdout)
    assert found == [{"run": "data", "finished": "-", "answers": "4 of 10 prompts", "student": "-", "teacher": "-"}]


def test_json_lines_carry_the_numbers(tmp_path: Path) -> None:
    with loopback(faults=0.2, kinds="503") as server:
        done = generate(write_recipe(tmp_path, server.url, prompts=50), tmp_path / "run", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    facts = next(line["facts"] for line in reversed(lines) if "facts" in line)
    assert facts["failed: overloaded"] > 0 and facts["replies_per_second"] > 0 and facts["in_flight"] == 0
    assert lines[-1]["answers"] == 50 and lines[-1]["read attempts"] == 50


def test_procedural_prompts_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    with loopback() as server:
        path = write_recipe(tmp_path, server.url, prompts=1)
        gym = "prompts={kind: reasoning_gym, task: chain_sum, size: 8, config: {max_terms: 2, seed: 5}}"
        assert Run(load_recipe(path, [gym]), tmp_path / "run").generate().exported == 8
        assert Run(load_recipe(path, [gym]), tmp_path / "run").generate().exported == 8 and server.attempts() == 8
    asked = query(tmp_path / "run", "SELECT messages FROM questions ORDER BY id")
    assert all("arithmetic" in body for (body,) in asked)


CASES: dict[str, tuple[str, int, str]] = {
    "unknown engine key": ("teacher.engine.urll=x", 2, "unknown key 'urll' in 'teacher.engine'; did you mean 'url'?"),
    "unknown engine": ("teacher.engine={kind: magic}", 2, "unknown kind 'magic' in 'teacher.engine'; known kinds: "),
    "no prompts": ("prompts.source=none.jsonl", 2, "there is no file at 'none.jsonl'"),
    "wrong column": ("prompts.columns={text: txt}", 2, "has no column 'txt'; did you mean 'text'?"),
    "n of nothing": ("generate.n=0", 2, "'generate.n' is 0"),
    "budget without price": ("generate.budget=1.0", 2, "needs a served teacher and a price file"),
    "longest alone": ("generate.longest=9", 2, "'longest' goes with 'truncated: longer'"),
    "a parameter that is ours": ("generate.parameters={seed: 1}", 2, "may not set 'seed'"),
    "unknown licence": ("teacher.licence=mine", 7, "is not known"),
    "a gguf that is none": ("teacher.engine={kind: gguf}", 2, "there is no model at 'loopback'"),
    "canned without a file": ("teacher.engine={kind: canned, answers: none.jsonl}", 2, "cannot be read"),
    "a gym task that is none": ("prompts={kind: reasoning_gym, task: chain_summ, size: 3}", 2, "not registered"),
    "two keys": ("teacher.engine={kind: server, url: 'http://x', key_env: A, key_file: b}", 2, "name one of"),
    "nobody there": ("teacher.engine={kind: server, url: 'http://127.0.0.1:9', patience: 0.2}", 4, "no connection"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_mistake_is_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    override, code, said = CASES[name]
    path = write_recipe(tmp_path, "http://127.0.0.1:9/v1", prompts=3)
    monkeypatch.chdir(tmp_path)
    assert execute(["generate", str(path), "--set", override]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("report", "there is no run in"),
        ("verify", "holds no answers yet; let the teacher write: potstill generate"),
        ("export", "holds no answers yet; potstill generate first"),
        ("train", "the recipe has no 'student' section"),
        ("evaluate", "the recipe has no 'evaluate' section"),
        ("rescue", "the recipe has no 'rescue' section"),
    ],
)
def test_other_verbs_say_what_is_missing(
    verb: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, "http://127.0.0.1:9/v1", prompts=3)
    assert execute([verb, str(path), "--run", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
