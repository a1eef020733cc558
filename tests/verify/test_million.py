"""A million stored answers are verified in less than 2 GB, and what grows with their number is known (make soak)."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from potstill.generate.collect import load_asks
from potstill.recipe import load_recipe
from potstill.store.requests import Requests
from potstill.store.run import open_run
from potstill.store.samples import Written

ANSWERS = 4  # a prompt
WORDS = [f"{a}{b}" for a in ("lamp", "mug", "desk", "wool", "oak", "tin") for b in ("", "s", "let", "wood", "work")]


@dataclass(frozen=True)
class Verified:
    peak_mb: float
    seconds: float
    kept: int


def verified(folder: Path, samples: int, **select: object) -> Verified:
    """Fill a ledger with `samples` answers, half of them right and no two alike, and verify them in a process of its
    own. The teacher is never asked."""
    folder.mkdir()
    draw = random.Random(0)
    texts = [f"order {i}: " + " ".join(draw.choices(WORDS, k=30)) for i in range(samples // ANSWERS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "answers.jsonl").write_text("")
    recipe = {
        "name": "million",
        "prompts": {"source": str(folder / "prompts.jsonl"), "licence": "mit", "columns": {"text": "text"}},
        "teacher": {
            "model": "canned",
            "licence": "mit",
            "engine": {"kind": "canned", "answers": str(folder / "answers.jsonl")},
        },
        "generate": {"n": ANSWERS},
        "verify": {"checks": [{"kind": "regex", "pattern": "^yes"}]},
        "select": {"keep": ANSWERS, **select},
    }
    path, run = folder / "recipe.yaml", folder / "run"
    path.write_text(json.dumps(recipe))
    asking = load_recipe(path)
    with open_run(run, asking) as opened, Requests(opened.ledger) as requests:
        load_asks(asking.request, requests)
        asked = [one.question for one in requests.open_asks()]
        with requests.transaction():
            requests.put_written(
                Written(question=q, sample=i, attempt=1, max_tokens=99, finish="stop", text=_answer(draw, i))
                for q in asked
                for i in range(ANSWERS)
            )
    start = time.monotonic()
    words = [sys.executable, "-m", "potstill", "verify", str(path), "--run", str(run), "--json"]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(words, stdout=said)
        _, status, usage = os.wait4(process.pid, 0)  # the process alone: the checks' workers have a limit of their own
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    last = json.loads((folder / "said").read_text().splitlines()[-1])
    assert sum(last["reasons"].values()) == samples
    return Verified(usage.ru_maxrss / 1024, time.monotonic() - start, last["reasons"]["kept"])


def _answer(draw: random.Random, number: int) -> str:
    return ("yes " if number % 2 else "no ") + " ".join(draw.choices(WORDS, k=30))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("select", [{}, {"near_duplicates": 0.9}], ids=["exact", "near"])
def test_a_million(tmp_path: Path, select: dict[str, object]) -> None:
    found = verified(tmp_path / "million", 1_000_000, **select)
    print(f"1,000,000 samples, {found.kept:,} kept: {found.peak_mb:,.0f} MB at most, {found.seconds:,.0f} s")
    assert found.kept == 500_000 and found.peak_mb < 2048
