"""What a server sends with status 200 and is no answer: nothing, a refusal, a call of a tool that nobody offered; and
reasoning between marks that only the recipe knows."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_runs import query
from json_server import serving

from potstill.errors import TeacherError
from potstill.generate.waves import EMPTY
from potstill.pipeline import Run
from potstill.recipe import load_recipe
from potstill.recipe.checks import Majority
from potstill.records import Message, Prompt, Sample
from potstill.verify.rewards import _opinion  # pyright: ignore[reportPrivateUsage]
from potstill.verify.select import Judged, with_majority

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
KINDS: dict[str, dict[str, Any]] = {
    "null": {"content": None},
    "blank": {"content": "  \n"},
    "refusal": {"content": None, "refusal": "I can't help with that."},
    "tool": {"content": None, "tool_calls": [CALL]},
    "thought": {"content": "", "reasoning_content": "Let me think about"},
    "own": {"content": "[[hm]] Yes, it is."},
    "good": {"content": "Yes, that is quite so."},
}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


class Teacher:
    """Says of a prompt what `KINDS` has under its text, until `well`; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.well = False

    def __call__(self, _: str, body: Any) -> tuple[int, object]:
        kind = body["messages"][-1]["content"]
        self.asked.append(kind)
        message = {"role": "assistant", **(KINDS["good"] if self.well else KINDS[kind])}
        finish = "length" if kind == "thought" else "stop"
        return 200, {"choices": [{"index": 0, "finish_reason": finish, "message": message}], "usage": USAGE}


@pytest.fixture
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture
def url(teacher: Teacher) -> Generator[str]:
    with serving(teacher) as address:
        yield f"{address}/v1"


def run_of(folder: Path, url: str, *more: str, kinds: tuple[str, ...] = tuple(KINDS)) -> Run:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": kind, "id": kind}) + "\n" for kind in kinds))
    recipe = folder / "recipe.yaml"
    source = {"source": str(prompts), "licence": "own", "columns": {"text": "text", "id": "id"}}
    engine = {"kind": "server", "url": url, "retry_seconds": 0.01}
    recipe.write_text(
        json.dumps(
            {
                "name": "no-answer",
                "prompts": source,
                "teacher": {"model": "m", "licence": "own", "engine": engine},
                "verify": {"checks": [{"kind": "repetition"}], "processes": 1},
            }
        )
    )
    return Run(load_recipe(recipe, more), folder / "run")


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["prompt_id"]: row for row in pq.read_table(path).to_pylist()}


def test_what_says_nothing_is_no_answer_and_is_asked_again(tmp_path: Path, teacher: Teacher, url: str) -> None:
    run = run_of(tmp_path, url)
    found = run.generate()
    assert found.lost == {EMPTY: 3} and found.settled == {"done": 4, "failed": 3}
    answers = rows(found.answers)
    assert answers.keys() == {"refusal", "tool", "own", "good"}
    assert (answers["refusal"]["messages"][-1]["content"], answers["refusal"]["finish"]) == (
        "I can't help with that.",
        "refusal",
    )
    verified = run.verify()
    assert rows(verified.selected).keys() == {"own", "good"} and verified.prompts["unanswered"] == 3
    assert verified.reasons["the teacher refused"] == verified.reasons["calls a tool that was not offered"] == 1

    teacher.asked.clear()
    teacher.well = True
    again = run.generate()
    assert sorted(teacher.asked) == ["blank", "null", "thought"] and again.lost == {} and again.exported == 7


def test_a_thought_that_ate_all_tokens_is_asked_for_with_more(tmp_path: Path, teacher: Teacher, url: str) -> None:
    more = ("generate.truncated=longer", "generate.max_tokens=16", "generate.longest=64")
    with pytest.raises(TeacherError, match=EMPTY):
        run_of(tmp_path, url, *more, kinds=("thought",)).generate()
    assert [tokens for (tokens,) in query(tmp_path / "run", "SELECT max_tokens FROM attempts")] == [16, 32, 64]


def test_reasoning_is_found_between_marks_of_ones_own_also_in_answers_that_are_there(
    tmp_path: Path, teacher: Teacher, url: str
) -> None:
    assert rows(run_of(tmp_path, url).generate().answers)["own"]["messages"][-1]["content"] == "[[hm]] Yes, it is."
    teacher.asked.clear()
    run = run_of(tmp_path, url, "teacher.reasoning_tags=['[[', ']]']")
    turn = rows(run.generate().answers)["own"]["messages"][-1]
    assert (turn["content"], turn["reasoning_content"]) == ("Yes, it is.", "hm") and "own" not in teacher.asked


def test_an_empty_answer_is_neither_rewarded_nor_a_majority() -> None:
    prompt = Prompt(id="p", split="train", messages=(Message(role="user", content="?"),))
    samples = [Sample(prompt_id="p", text=text, index=i) for i, text in enumerate(("", " ", "\n", "42", "42"))]
    assert [_opinion(sample, ()) for sample in samples] == [0.0, 0.0, 0.0, 1.0, 1.0]
    checks = [Majority(kind="majority", share=0.4)]
    group = with_majority([Judged(prompt=prompt, sample=sample, findings=()) for sample in samples], checks)
    assert [one.findings[0].opinion for one in group] == ["failed"] * 3 + ["passed"] * 2
