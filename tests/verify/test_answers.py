"""`potstill verify` on a data recipe: from a ledger to selected answers, again and again, without a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from potstill.cli import execute
from potstill.pipeline import Run
from potstill.recipe import load_recipe

ORDERS = [("ana", "3 lamps"), ("bo", "12 cables"), ("cy", "7 mugs")]


def written(folder: Path, **changes: Any) -> Path:
    """A recipe with three prompts and four canned answers each: right, made up, no JSON, right again."""
    prompts, answers = [], []
    for name, goods in ORDERS:
        n, item = goods.split()
        text = f"I am {name}, send {n} {item}"
        right = json.dumps({"name": name, "n": int(n), "item": item})
        prompts.append({"text": text, "gold": right})
        for answer in (right, json.dumps({"name": name, "n": 99, "item": item}), "sure!", right):
            answers.append({"prompt": text, "answer": answer})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    (folder / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    recipe = {
        "name": "orders",
        "prompts": {
            "source": str(folder / "prompts.jsonl"),
            "licence": "mit",
            "columns": {"text": "text", "reference": "gold"},
        },
        "teacher": {
            "model": "canned",
            "licence": "apache-2.0",
            "engine": {"kind": "canned", "answers": str(folder / "answers.jsonl")},
        },
        "generate": {"n": 8},
        "verify": {"checks": [{"kind": "json"}, {"kind": "grounded"}]},
        "select": {"keep": 1, "pairs": True},
        **changes,
    }
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(recipe, file)
    return path


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(run / "examples" / f"{name}.parquet").to_pylist()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    Run(load_recipe(written(tmp_path)), tmp_path / "run").generate()
    return tmp_path / "run"


def test_the_good_are_kept_and_the_rest_have_reasons(run: Path, tmp_path: Path) -> None:
    found = Run(load_recipe(written(tmp_path)), run).verify()
    verdicts = rows(run, "verdicts")
    assert len(verdicts) == 24 and sum(v["kept"] for v in verdicts) == 3 == found.kept
    # an independent scorer: right is what equals the gold
    gold = {p["text"]: p["gold"] for p in map(json.loads, (tmp_path / "prompts.jsonl").read_text().splitlines())}
    selected = rows(run, "selected")
    assert all(r["messages"][-1]["content"] == gold[r["messages"][0]["content"]] for r in selected)
    answers = {(r["prompt_id"], r["index"]): r["messages"][-1]["content"] for r in rows(run, "answers")}
    for v in verdicts:
        answer = answers[v["prompt_id"], v["index"]]
        wanted = "no JSON" if answer == "sure!" else "a value is not in the prompt" if "99" in answer else ""
        assert wanted in v["reason"] and (not v["kept"] or not wanted)
        assert [f["check"].partition("@")[0] for f in v["findings"]] == ["json", "grounded"]
    assert all(r["licence"] == "apache-2.0 (teacher), mit (prompts)" for r in selected)
    pairs = rows(run, "pairs")
    assert len(pairs) == 3 and all(
        "sure!" in p["rejected"][0]["content"] or "99" in p["rejected"][0]["content"] for p in pairs
    )
    card = (run / "examples" / "README.md").read_text()
    assert "| kept | 3 |" in card and "apache-2.0" in card


def test_again_gives_the_same_bytes_and_other_checks_ask_nothing(run: Path, tmp_path: Path) -> None:
    path = written(tmp_path)
    Run(load_recipe(path), run).verify()
    first = {p.name: p.read_bytes() for p in (run / "examples").iterdir()}
    Run(load_recipe(path), run).verify()
    assert {p.name: p.read_bytes() for p in (run / "examples").iterdir()} == first
    (tmp_path / "answers.jsonl").unlink()  # whoever asks the teacher now fails
    exact = load_recipe(written_again := written_checks(path, [{"kind": "exact"}]))
    assert Run(exact, run).verify().kept == 3 and written_again == path
    assert Run(load_recipe(written_checks(path, [{"kind": "length", "least": 99}])), run).verify().kept == 0
    assert rows(run, "selected") == [] and len(rows(run, "verdicts")) == 24


def written_checks(path: Path, checks: list[dict[str, Any]]) -> Path:
    recipe = YAML().load(path.read_text())
    recipe["verify"]["checks"] = checks
    with path.open("w") as file:
        YAML().dump(recipe, file)
    return path


def test_keeping_more_drops_what_is_the_same(run: Path, tmp_path: Path) -> None:
    found = Run(load_recipe(written(tmp_path, select={"keep": 4})), run).verify()
    passed = [v for v in rows(run, "verdicts") if all(f["opinion"] == "passed" for f in v["findings"])]
    assert found.kept == 3 and found.reasons["duplicate"] == len(passed) - 3 > 3


def test_what_the_evaluation_set_holds_is_not_trained_on(run: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text('question\n"Please! I am Bo, send 12 cables now"\n')
    evaluation = {"source": str(tmp_path / "test.csv"), "columns": ["question"], "words": 5}
    found = Run(load_recipe(written(tmp_path, select={"evaluation": evaluation})), run).verify()
    assert found.kept == 2 and found.reasons["its prompt is in the evaluation set"] >= 1
    evidence = {v["evidence"] for v in rows(run, "verdicts") if "evaluation" in v["reason"]}
    assert evidence == {"i am bo send 12"}


def test_datasets_reads_what_was_selected(run: Path, tmp_path: Path) -> None:
    import datasets

    Run(load_recipe(written(tmp_path)), run).verify()
    loaded = datasets.load_dataset(str(run / "examples"), split="train")  # by the data card's own configuration
    assert len(loaded) == 3 and loaded[0]["messages"][-1]["role"] == "assistant"


MISTAKES: dict[str, tuple[list[str], int, str]] = {
    "no checks": (["verify={checks: []}"], 2, "'verify.checks' is"),
    "unknown check": (["verify.checks=[{kind: magic}]"], 2, "unknown kind 'magic' in 'verify.checks.0'; known kinds: "),
    "misspelt key": (["verify.checks=[{kind: length, leest: 3}]"], 2, "did you mean 'least'?"),
    "bad pattern": (["verify.checks=[{kind: regex, pattern: '('}]"], 2, "is no regular expression"),
    "no such function": (
        ["verify.checks=[{kind: function, name: 'nowhere:f'}]"],
        2,
        "there is no function 'nowhere:f'",
    ),
    "wrong band": (["select.pass_rate=[0.9, 0.1]"], 2, "must not be above the second"),
    "select alone": (["verify=null"], 2, "add 'verify' with its checks"),
    "no evaluation set": (
        ["select.evaluation={source: none.jsonl, columns: [a]}"],
        2,
        "there is no file at 'none.jsonl'",
    ),
    "wrong reference": (["prompts.columns.reference=golt"], 2, "did you mean 'gold'?"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_sentence(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, code, said = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    words = ["verify", str(written(tmp_path)), "--run", str(run)]
    assert execute([*words, *(w for o in overrides for w in ("--set", o))]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Traceback" not in error


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(written(tmp_path))
    assert execute(["verify", recipe]) == 2
    assert "holds no answers yet; let the teacher write: potstill generate" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert execute(["check", recipe]) == 0
    assert execute(["run", recipe]) == 0
    assert "3 of 24 answers kept" in capsys.readouterr().out
    assert execute(["verify", "runs/orders", "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["reasons"]["kept"] == 3 and last["pairs"] == 3
