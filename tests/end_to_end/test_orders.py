"""Rejection sampling with a real model: what the checks keep, counted again by a scorer that knows the truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from affordable import AFFORDABLE

from potstill.pipeline import Run
from potstill.recipe import load_recipe

ROOT = Path(__file__).parents[2]


def parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_forty_orders(tmp_path: Path) -> None:
    make = [sys.executable, str(ROOT / "scripts" / "make_orders.py"), str(tmp_path), "--count", "40"]
    subprocess.run(make, check=True)
    files = [
        f"prompts.source={tmp_path / 'orders.jsonl'}",
        f"select.evaluation.source={tmp_path / 'orders_test.jsonl'}",
        f"evaluate.prompts.source={tmp_path / 'orders_test.jsonl'}",
    ]
    recipe = load_recipe(ROOT / "recipes" / "orders.yaml", [*files, "generate.n=4", f"train.precision={AFFORDABLE}"])
    done = Run(recipe, tmp_path / "run").generate()
    found = Run(recipe, tmp_path / "run").verify()
    examples = tmp_path / "run" / "examples"
    gold = {
        o["text"]: json.loads(o["gold"]) for o in map(json.loads, (tmp_path / "orders.jsonl").read_text().splitlines())
    }
    answers = pq.read_table(examples / "answers.parquet").to_pylist()
    verdicts = {(v["prompt_id"], v["index"]): v for v in pq.read_table(examples / "verdicts.parquet").to_pylist()}
    assert done.exported == len(answers) == len(verdicts) == found.reasons.total()
    # an answer passes both checks exactly if it has the right keys and types, and every value stands in the e-mail
    kept = right = passed = 0
    for answer in answers:
        asked, said = answer["messages"][0]["content"], answer["messages"][-1]["content"]
        verdict = verdicts[answer["prompt_id"], answer["index"]]
        order = parsed(said)
        sound = (
            isinstance(order, dict)
            and {k: type(v) for k, v in order.items()} == {k: type(v) for k, v in gold[asked].items()}
            and all(min(len(v), 3) == 3 if isinstance(v, str) else v > 0 for v in order.values())
            and all(f" {str(v).lower().strip()} " in f" {words(asked)} " for v in order.values())
        )
        assert all(f["opinion"] == "passed" for f in verdict["findings"]) == sound, (said, verdict)
        assert not verdict["kept"] or sound
        passed += sound
        kept += verdict["kept"]
        right += verdict["kept"] and order == gold[asked]
    assert kept == found.kept == pq.read_metadata(examples / "selected.parquet").num_rows
    assert 10 <= passed <= 150 and right / kept > 0.6, (passed, kept, right)
    print(f"{len(answers)} answers, {passed} passed, {kept} kept, {right} of those right")
    assert found.pairs == pq.read_metadata(examples / "pairs.parquet").num_rows > 0


def words(text: str) -> str:
    """The e-mail without its punctuation, in small letters."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).replace("  ", " ").replace("  ", " ")
