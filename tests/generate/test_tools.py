"""Tools and their calls travel whole: from the prompts' file to the server, from its reply to Parquet and JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_runs import query, write_recipe
from json_server import serving

from potstill.errors import InputError, TeacherError
from potstill.generate.waves import seed_key
from potstill.pipeline import Run
from potstill.plan import plan
from potstill.recipe import load_recipe
from potstill.recipe.whole import Recipe
from potstill.records import Message, Prompt
from potstill.store.examples import export_examples, read_examples

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "天気", "parameters": {"type": "object", "properties": {"at": {}}}},
}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain in Ulm?", "name": "Ada"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Ulm"}'}}],
    },
    {"role": "tool", "content": "no rain", "name": "weather", "tool_call_id": "c1"},
    {"role": "user", "content": "And in Bonn?"},
]
CALLED = [{"id": "c2", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Bonn"}'}}]


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.fixture
def served(heard: list[Any]) -> Iterator[str]:
    """A server that wants a tool called, and what it hears."""

    def answer(_: str, asked: Any) -> tuple[int, object]:
        heard.append(asked)
        calls = [{"index": 0, **CALLED[0]}]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    with serving(answer) as address:
        yield f"{address}/v1"


def recipe_of(folder: Path, url: str, rows: list[dict[str, Any]], *more: str) -> Recipe:
    path = write_recipe(folder, url, prompts=1)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "prompts.columns={messages: talk, tools: tools}"
    return load_recipe(path, [columns, "verify={checks: [{kind: length, least: 0}]}", *more])


@pytest.mark.parametrize("as_text", [True, False])
def test_they_travel_whole(tmp_path: Path, served: str, heard: list[Any], as_text: bool) -> None:
    rows = [{"talk": TALK, "tools": json.dumps([TOOL]) if as_text else [TOOL]}, {"talk": TALK, "tools": None}]
    recipe, run = recipe_of(tmp_path, served, rows), tmp_path / "run"
    assert Run(recipe, run).generate().exported == 2, "the same text with other tools is another prompt"
    with_tools, without = sorted(heard, key=lambda body: "tools" not in body)
    assert with_tools["messages"] == without["messages"] == TALK
    assert with_tools["tools"] == [TOOL] and "tools" not in without

    said = Message(role="assistant", content="", tool_calls=tuple(CALLED))
    talk = (*(Message.from_dict(turn) for turn in TALK), said)
    Run(recipe, run).verify()
    for name in ("answers", "selected"):
        path = run / "examples" / f"{name}.parquet"
        found = {bool(one.tools): one for one in read_examples(path)}
        assert all((one.messages, one.weight, one.teacher) == (talk, 1.0, "loopback") for one in found.values())
        assert (found[True].tools, found[False].tools) == ((TOOL,), ())
        assert found[True].prompt_id != found[False].prompt_id
        row = next(row for row in pq.read_table(path).to_pylist() if row["tools"])
        assert json.loads(row["tools"]) == [TOOL] and row["messages"][-1]["tool_calls"] == CALLED
        assert [turn["name"] for turn in row["messages"]] == ["Ada", None, "weather", None, None]
        assert row["messages"][2]["tool_call_id"] == "c1"
    (path,) = export_examples(run / "examples" / "selected.parquet", form="jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == pq.read_table(run / "examples" / "selected.parquet").to_pylist()


def test_what_is_sent_is_in_the_key_and_nothing_else_is_new() -> None:
    """Keys of prompts without tools are what they always were: so are their seeds."""

    def key(engine: dict[str, Any], **more: Any) -> str:
        prompts = {"source": "x.jsonl", "licence": "mit", "columns": {"text": "t"}}
        teacher = {"model": "m", "revision": "r", "licence": "mit", "engine": engine}
        recipe = Recipe.model_validate({"name": "n", "prompts": prompts, "teacher": teacher})
        asked = {"id": "p", "split": "train", "messages": (Message(role="user", content="why?"),), **more}
        return seed_key(recipe, Prompt(**asked)).hex()

    server: dict[str, Any] = {"kind": "server", "url": "http://127.0.0.1:1/v1"}
    assert key(server) == "9fb59be36ca3047977e127a72d7aef18"
    assert key({"kind": "local"}) == "3a9901135eb08ac6b847cd02b22eb2e8"
    assert key(server, tools=(TOOL,)) != key(server)
    assert key(server, messages=(Message(role="user", content="why?", name="Ada"),)) != key(server)


def test_the_budget_counts_them(tmp_path: Path, served: str) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("loopback: {input: 1.0, output: 1.0}\n")
    rows = [{"talk": TALK, "tools": None}]
    plain = plan(recipe_of(tmp_path, served, rows, f"generate.prices={prices}")).dollars
    rows = [{"talk": TALK, "tools": [TOOL]}]
    more = plan(recipe_of(tmp_path, served, rows, f"generate.prices={prices}")).dollars - plain
    assert more * 1e6 > len(json.dumps(TOOL, ensure_ascii=False).encode())


def test_anthropics_form_has_no_place_for_them(tmp_path: Path, served: str, heard: list[Any]) -> None:
    form = "teacher.engine.form=anthropic"
    for rows in ([{"talk": TALK, "tools": None}], [{"talk": TALK[:1], "tools": [TOOL]}]):
        with pytest.raises(InputError, match="has tools, which are not sent in Anthropic's form"):
            Run(recipe_of(tmp_path, served, rows, form), tmp_path / "run").generate()
    assert not heard


def test_a_template_that_does_not_write_them_is_no_answer(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"talk": [{"role": "user", "content": "film"}], "tools": [TOOL]}]
    here = ["teacher.engine={kind: local}", f"teacher.model={tiny_model}", "generate.max_tokens=2"]
    with pytest.raises(TeacherError, match="answered: refused: the teacher template does not write tools"):
        Run(recipe_of(tmp_path, "http://127.0.0.1:1/v1", rows, *here), tmp_path / "run").generate()
    reasons = query(tmp_path / "run", "SELECT given_up FROM answers")
    assert reasons == [("tried in vain: refused: the teacher template does not write tools",)]
    writes = (
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    path = tmp_path / "template.yaml"
    path.write_text(writes)
    found = Run(
        recipe_of(tmp_path, "http://127.0.0.1:1/v1", rows, *here, f"teacher.engine.template={json.dumps(writes)}"),
        tmp_path / "run",
    ).generate()
    assert found.exported == 1


@pytest.mark.parametrize(
    ("row", "said"),
    {
        "a role": (
            {"talk": [{"role": "narrator", "content": "x"}]},
            "the role 'narrator' is none of system, user, assistant",
        ),
        "parts": ({"talk": [{"role": "user", "content": [{"type": "text"}]}]}, "a part of its content has no text"),
        "content": ({"talk": [{"role": "user", "content": 3}]}, "'content' is neither text nor null: 3"),
        "a name": ({"talk": [{"role": "user", "content": "x", "name": 3}]}, "'name' is neither text nor null: 3"),
        "a call": ({"talk": [{"role": "assistant", "tool_calls": [{"name": "f"}]}]}, "is not a list of messages"),
        "no list": ({"talk": TALK, "tools": {"type": "function"}}, "'tools' is not a list of tools"),
        "no JSON": ({"talk": TALK, "tools": "[{"}, "'tools' is not a list of tools"),
        "no function": ({"talk": TALK, "tools": [{"name": "f"}]}, "'tools' is not a list of tools"),
    }.values(),
)
def test_what_is_no_message_or_tool_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, Any], said: str, heard: list[Any], served: str
) -> None:
    rows = [{"talk": TALK, "tools": "  "}, {"tools": None, **row}]
    with pytest.raises(InputError) as refused:
        Run(recipe_of(tmp_path, served, rows), tmp_path / "run").generate()
    assert said in str(refused.value) and "prompts.jsonl, line 2" in str(refused.value) and not heard
