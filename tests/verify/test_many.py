"""A hundred thousand stored answers are judged again in a minute, in little memory, and nobody is asked (make soak)."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest

from potstill.pipeline import Run
from potstill.recipe import load_recipe


@pytest.mark.soak
def test_a_hundred_thousand(tmp_path: Path) -> None:
    count, n = 25_000, 4
    orders = [{"name": f"Ana {i}", "quantity": i % 97 + 1, "city": f"Town {i % 300}"} for i in range(count)]
    with (tmp_path / "prompts.jsonl").open("w") as prompts, (tmp_path / "answers.jsonl").open("w") as answers:
        for order in orders:
            text = f"Please send {order['quantity']} lamps to {order['name']} in {order['city']}, and hurry."
            prompts.write(json.dumps({"text": text}) + "\n")
            for wrong in ({}, {"quantity": 1234}):
                answers.write(json.dumps({"prompt": text, "answer": json.dumps({**order, **wrong})}) + "\n")
    shape = {"type": "object", "required": ["name", "quantity", "city"], "additionalProperties": False}
    shape["properties"] = {name: {} for name in ("name", "quantity", "city")}
    checks = [
        {"kind": "json", "shape": shape},
        {"kind": "grounded"},
        {"kind": "length", "most": 60},
        {"kind": "repetition"},
        {"kind": "regex", "pattern": "sorry", "absent": True},
    ]
    recipe = {
        "name": "many",
        "prompts": {"source": str(tmp_path / "prompts.jsonl"), "licence": "mit", "columns": {"text": "text"}},
        "teacher": {
            "model": "canned",
            "licence": "mit",
            "engine": {"kind": "canned", "answers": str(tmp_path / "answers.jsonl")},
        },
        "generate": {"n": n},
        "verify": {"checks": checks},
        "select": {"keep": 2, "pairs": True},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = Run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run").generate()
    assert done.exported == count * n
    (tmp_path / "answers.jsonl").unlink()  # whoever asks the teacher now fails
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    found = Run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run").verify()
    seconds = time.monotonic() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{found.reasons.total():,} samples in {seconds:.1f} s, {grown:.0f} MB more at most, {found.reasons}")
    assert found.reasons.total() == count * n
    assert seconds < 60
