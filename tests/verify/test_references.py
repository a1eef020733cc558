"""A list of references: any of them is right, from the file through the ledger and a rescue to the verdict."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from potstill.generate.rescue import prompts_in, write_asks
from potstill.pipeline import Run
from potstill.prompts.stream import stream_prompts
from potstill.recipe import load_recipe
from potstill.recipe.checks import Alone
from potstill.recipe.prompts import Columns
from potstill.records import Message, Prompt, Sample
from potstill.store.requests import Requests
from potstill.verify.check import look

ADAPTER = TypeAdapter[Alone](Alone)


def opinion(check: dict[str, Any], references: list[Any], answer: str) -> str:
    prompt = Prompt(
        id="p",
        split="train",
        messages=(Message(role="user", content="?"),),
        reference=json.dumps(references),
        any_of=True,
    )
    return look(ADAPTER.validate_python(check), prompt, Sample(prompt_id="p", text=answer)).opinion


@pytest.mark.parametrize(
    ("check", "references", "opinions"),
    [
        (
            {"kind": "exact"},
            ["Paris", "paris, France"],
            {"Paris": "passed", "paris, France": "passed", "Rome": "failed"},
        ),
        ({"kind": "exact"}, [True, 3.0], {"true": "passed", "3": "passed", "[true, 3.0]": "failed"}),
        ({"kind": "number"}, ["about 4", 5], {"4": "passed", "it is 5": "passed", "6": "failed"}),
        ({"kind": "number"}, ["four", 5], {"5": "passed", "6": "undecided"}),
        ({"kind": "maths"}, [None, "$1/2$", "$3$"], {"$0.5$": "passed", "$3$": "passed", "$4$": "failed"}),
        ({"kind": "json", "as_reference": True}, ["a", "b"], {'["a", "b"]': "passed", '"a"': "failed"}),
    ],
)
def test_any_of_several_is_right(check: dict[str, Any], references: list[Any], opinions: dict[str, str]) -> None:
    assert {answer: opinion(check, references, answer) for answer in opinions} == opinions


def test_code_passes_all_of_a_list_of_tests() -> None:
    tests = ["assert double(1) == 2", "assert double(3) == 6"]
    answers = {"def double(x): return 2 * x": "passed", "def double(x): return x + 1": "failed"}
    assert {answer: opinion({"kind": "code"}, tests, answer) for answer in answers} == answers


def test_a_list_of_references_lasts_through_ledger_and_rescue(tmp_path: Path) -> None:
    rows = [
        {"q": "capital of France?", "a": ["Paris", "the city of Paris"]},
        {"q": "and its code?", "a": '["Paris", "FR"]'},
        {"q": "capital of France?", "a": "Rome"},
    ]
    answers = [("capital of France?", "the city of Paris"), ("and its code?", '["Paris", "FR"]')]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in answers))
    values = {
        "name": "r",
        "prompts": {
            "source": str(tmp_path / "p.jsonl"),
            "licence": "own",
            "columns": {"text": "q", "reference": "a"},
        },
        "teacher": {
            "model": "c",
            "licence": "own",
            "engine": {"kind": "canned", "answers": str(tmp_path / "a.jsonl")},
        },
        "generate": {"n": 1},
        "verify": {"checks": [{"kind": "exact"}]},
    }
    (tmp_path / "r.yaml").write_text("\ufeff" + json.dumps(values), encoding="utf-8")
    run = Run(load_recipe(tmp_path / "r.yaml"), tmp_path / "run")
    assert run.generate().exported == 2  # two prompts share a question, and what is learnt unchecked is learnt once
    assert run.verify().kept == 2
    with Requests(tmp_path / "run" / "ledger.sqlite") as requests:
        asked = list(requests.prompts())
    assert [(prompt.reference, prompt.any_of) for prompt in asked] == [
        ('["Paris", "the city of Paris"]', True),
        ('["Paris", "FR"]', False),
        ("Rome", False),
    ]
    assert write_asks(tmp_path / "again.jsonl", asked) == 3
    columns = Columns(id="id", messages="messages", reference="reference", tools="tools", grade=None)
    again = stream_prompts(prompts_in(tmp_path / "again.jsonl", "own", columns), Counter())
    assert list(again) == asked
