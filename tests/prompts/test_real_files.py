"""Files as people and tools write them: each is read as it was meant, or refused by file, line and value."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from potstill.cli import execute
from potstill.errors import InputError
from potstill.prompts.columns import as_text
from potstill.prompts.rows import read_rows
from potstill.prompts.stream import how_read, stream_prompts
from potstill.recipe.prompts import DataFiles, PromptFile
from potstill.recipe.task import Choice
from potstill.records import Message, Prompt

BOM = "\ufeff"
LONG = "the brook ran on " * 10_000
HALF = '"\\ud83d"'
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote Faust?"},
    {"role": "assistant", "content": "Goethe."},
    {"role": "user", "content": "When?"},
]
ROLES = ["system", "user", "assistant", "user"]


def ask(path: Path, columns: dict[str, Any], **more: Any) -> PromptFile:
    values = {"source": str(path), "licence": "own", "columns": columns, **more}
    return TypeAdapter[PromptFile](PromptFile).validate_json(json.dumps(values))


def read(path: Path, columns: dict[str, Any], left_out: Counter[str] | None = None, **more: Any) -> list[Prompt]:
    return list(stream_prompts(ask(path, columns, **more), Counter() if left_out is None else left_out))


def written(folder: Path, name: str, content: str | bytes | list[Any]) -> Path:
    """A text as UTF-8, bytes as they are, rows as JSONL."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_csv(rows: list[list[str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


TEXT = {"text": "q"}
WITH_GOLD = {"text": "q", "reference": "a"}
PAIRS = [["q", "a"], ["Größe, in cm?", "12"], ["How far?", "3 km"]]
READ: dict[str, tuple[str, str | bytes | list[Any], dict[str, Any], list[str]]] = {
    "BOM, JSONL": ("p.jsonl", BOM + '{"q": "far?"}\n', TEXT, ["far?"]),
    "BOM in the middle, of files put together": ("p.jsonl", f'{{"q": "a"}}\n{BOM}{{"q": "b"}}\n', TEXT, ["a", "b"]),
    "BOM, CSV": ("p.csv", BOM + "q,a\nfar?,3\n", TEXT, ["far?"]),
    "BOM, CSV with quotes": ("p.csv", BOM + '"q","a"\n"far, then?",3\n', TEXT, ["far, then?"]),
    "BOM, one list": ("p.json", BOM + '[{"q": "far?"}]', TEXT, ["far?"]),
    "long cell, CSV": ("p.csv", as_csv([["q"], [LONG]]), TEXT, [LONG.strip()]),
    "long cell, TSV": ("p.tsv", as_csv([["q"], [LONG]], "\t"), TEXT, [LONG.strip()]),
    "long cell after the header with semicolons": (
        "p.csv",
        as_csv([["q", "a"], [LONG, "1"]], ";"),
        TEXT,
        [LONG.strip()],
    ),
    "semicolons": ("p.csv", as_csv(PAIRS, ";"), TEXT, ["Größe, in cm?", "How far?"]),
    "tabs in a CSV": ("p.csv", as_csv(PAIRS, "\t"), TEXT, ["Größe, in cm?", "How far?"]),
    "bars": ("p.csv", as_csv(PAIRS, "|"), TEXT, ["Größe, in cm?", "How far?"]),
    "commas, and semicolons in the texts": ("p.csv", "q,a\nx; y,1\nz; w,2\n", TEXT, ["x; y", "z; w"]),
    "one column, and semicolons in the texts": ("p.csv", "q\nx; y\nz; w\n", TEXT, ["x; y", "z; w"]),
    "lines in a cell": ("p.csv", 'q;a\n"two\nlines, ""quoted""";1\n', TEXT, ['two\nlines, "quoted"']),
    "columns without a name at the end": ("p.csv", "q,a,,\nfar?,3,,\n", TEXT, ["far?"]),
    "line separators in a cell": ("p.csv", "q;a\none\u2028two;1\nthree;2\n", TEXT, ["one\u2028two", "three"]),
    "one JSON list": ("p.json", json.dumps([{"q": "one"}, {"q": "two"}], indent=2), TEXT, ["one", "two"]),
    "one JSON list, called JSONL": ("p.jsonl", '[{"q": "one"},\n {"q": "two"}]\n', TEXT, ["one", "two"]),
    "JSON lines, called JSON": ("p.json", '{"q": "one"}\n{"q": "two"}\n', TEXT, ["one", "two"]),
    "CRLF": ("p.jsonl", b'{"q": "one"}\r\n{"q": "two"}\r\n', TEXT, ["one", "two"]),
    "gzip, JSONL": ("p.jsonl.gz", gzip.compress(b'{"q": "zipped"}\n'), TEXT, ["zipped"]),
    "gzip, CSV, in capitals": ("P.CSV.GZ", gzip.compress(b"q;a\nzipped;1\n"), TEXT, ["zipped"]),
    "gzip, one list": ("p.json.gz", gzip.compress(b' [{"q": "zipped"}]'), TEXT, ["zipped"]),
    "capitals": ("P.JSONL", '{"q": "upper"}\n', TEXT, ["upper"]),
    "several columns": (
        "p.jsonl",
        [{"i": "Name", "x": "a lemon"}, {"i": "Say hello", "x": ""}, {"i": "Go", "x": None}],
        {"text": ["i", "x"]},
        ["Name\na lemon", "Say hello", "Go"],
    ),
    "a template": (
        "p.jsonl",
        [{"i": "Name", "x": {"y": "it"}, "n": 3.0}, {"i": "Go", "x": None, "n": True}],
        {"text": "{{ i }}{% if x %}: {{ x.y }}{% endif %} ({{ n }})"},
        ["Name: it (3)", "Go (true)"],
    ),
    "nested": ("p.jsonl", [{"data": {"question": "deep?"}}], {"text": "data.question"}, ["deep?"]),
    "a name with a dot": ("p.jsonl", [{"data.q": "flat?"}], {"text": "data.q"}, ["flat?"]),
    "a number, and zero": ("p.jsonl", [{"q": 17}, {"q": 0}], TEXT, ["17", "0"]),
    "half of a UTF-16 pair": ("p.jsonl", f'{{"q": {HALF}, "a": {HALF}}}\n', WITH_GOLD, ["\ufffd"]),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_meant_is_read(tmp_path: Path, case: str) -> None:
    name, content, columns, texts = READ[case]
    assert [prompt.text for prompt in read(written(tmp_path, name, content), columns)] == texts


def test_a_delimiter_that_is_found_and_a_list_are_said_and_may_be_overruled(tmp_path: Path) -> None:
    found = written(tmp_path, "p.csv", "q;a|b\nx;1|2\n")
    assert how_read(ask(found, TEXT)) == (f"'{found}' is read with ';' between its cells ('prompts.delimiter')",)
    assert [prompt.reference for prompt in read(found, {"text": "q;a", "reference": "b"}, delimiter="|")] == ["2"]
    listed, plain = written(tmp_path, "p.json", '[{"q": "one"}]'), written(tmp_path, "p.jsonl", '{"q": "one"}\n')
    assert how_read(ask(listed, TEXT)) == (f"'{listed}' is read as one JSON list",)
    assert how_read(ask(plain, TEXT)) == ()


ROW = st.dictionaries(
    st.text(max_size=5),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda x: st.lists(x, max_size=4)),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROW, max_size=6), indent=st.sampled_from([None, 1]), blank=st.integers(130_900, 131_100))
def test_one_list_is_read_as_python_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int | None, blank: int
) -> None:
    """Also where objects lie across the pieces that are read at once."""
    text = json.dumps([*rows, {"long": "\\" * blank}, *rows], indent=indent)
    path = written(tmp_path_factory.mktemp("list"), "p.json", text)
    found = list(read_rows(DataFiles(source=str(path)), Counter()))
    assert [row for _, row in found] == json.loads(text)
    if indent:
        lines = text.split("\n")
        assert all(lines[int(where.rpartition(" ")[2]) - 1].startswith(" {") for where, _ in found)


CONVERSATIONS: dict[str, Any] = {
    "turns": TURNS,
    "JSON text": json.dumps(TURNS),
    "ShareGPT": [
        {"from": {"user": "human", "assistant": "gpt"}.get(t["role"], t["role"]), "value": t["content"]} for t in TURNS
    ],
    "capitals": [{**turn, "role": turn["role"].title()} for turn in TURNS],
    "parts": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TURNS],
    "an object of lists": {name: [turn[name] for turn in TURNS] for name in ("role", "content")},
    "empty fields": [{**turn, "name": None, "images": [], "tool_calls": None, "note": ""} for turn in TURNS],
    "the answer too": [*TURNS, {"role": "assistant", "content": "1808"}],
}


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_conversations_are_read_in_every_usual_form(tmp_path: Path, case: str, kind: str) -> None:
    rows, left_out = [{"m": CONVERSATIONS[case]}], Counter[str]()
    path = written(tmp_path, f"p.{kind}", rows)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    (found,) = read(path, {"messages": "m"}, left_out)
    assert found.messages == tuple(map(Message.from_dict, TURNS))
    assert left_out == ({"the assistant's turn at the end of a conversation": 1} if case == "the answer too" else {})


def test_parts_of_text_are_joined_and_named_fields_ignored(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "See this:"}, "two", {"type": "input_text", "text": "three", "image": None}]
    path = written(tmp_path, "p.jsonl", [{"m": [{"role": "user", "content": parts, "timestamp": 5}]}])
    (found,) = read(path, {"messages": "m", "ignored": ["timestamp"]})
    assert found.messages == (Message(role="user", content="See this:\ntwo\nthree"),)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("3", "3"),
        (True, "true"),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (None, None),
        (float("nan"), None),
        ({"a": [1.5, 2.0]}, '{"a": [1.5, 2.0]}'),
        (pa.scalar("3.50").cast(pa.decimal128(5, 2)).as_py(), "3.50"),
        (pa.scalar(0, pa.date32()).as_py(), "1970-01-01"),
    ],
)
def test_a_reference_is_text_as_people_write_it(tmp_path: Path, value: object, text: str | None) -> None:
    assert as_text(value) == text
    pq.write_table(pa.Table.from_pylist([{"q": "x", "a": value}]), tmp_path / "p.parquet")
    assert [prompt.reference for prompt in read(tmp_path / "p.parquet", WITH_GOLD)] == [text]


def test_a_boolean_reference_may_be_a_choice(tmp_path: Path) -> None:
    path, task = (
        written(tmp_path, "p.jsonl", [{"q": "x", "a": True}]),
        Choice(kind="choice", choices=("true", "false"), probabilities=None),
    )
    assert [prompt.reference for prompt in stream_prompts(ask(path, WITH_GOLD), Counter(), task=task)] == ["true"]


@pytest.mark.parametrize(
    ("value", "reference", "any_of"),
    [
        (["4", "four"], '["4", "four"]', True),
        ([4, None], "[4, null]", True),
        ([{"a": 1}], '[{"a": 1}]', False),
        ([None], "[null]", False),
        ([], None, False),
        ('["4"]', '["4"]', False),
    ],
)
def test_a_list_of_references_is_known_from_its_text(
    tmp_path: Path, value: object, reference: str | None, any_of: bool
) -> None:
    (found,) = read(written(tmp_path, "p.jsonl", [{"q": "x", "a": value}]), WITH_GOLD)
    assert (found.reference, found.any_of) == (reference, any_of)


def test_half_of_a_utf_16_pair_is_healed_wherever_it_stands(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"x": "\ud83d"}}}
    turn = {"role": "assistant", "content": "c\ud83d", "reasoning_content": "r\ud83d", "tool_calls": [call]}
    row = {"i": "i\ud83d", "m": [turn, {"role": "user", "content": "u\ud83d"}], "a": "a\ud83d", "whole": "😀"}
    nested = row | {"i": 1, "m": json.dumps(row["m"])}
    left_out, columns = Counter[str](), {"messages": "m", "id": "i", "reference": "a"}
    found, other = read(written(tmp_path, "p.jsonl", [row, nested]), columns, left_out)
    assert left_out == {"half of a UTF-16 pair (now U+FFFD)": 2}
    assert found.messages == other.messages and "\\ud83d" not in repr(found) and repr(found).count("\ufffd") == 6


# what is refused

MESSAGES = {"messages": "m"}


def turn(**fields: Any) -> list[Any]:
    return [{"m": TURNS}, {"m": [{"role": "user", "content": "hi", **fields}]}]


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/c.jpg"}}
REFUSED: dict[str, tuple[str, str | bytes | list[Any], dict[str, Any], str]] = {
    "a list as text": ("p.jsonl", [{"q": "x"}, {"q": ["one"]}], TEXT, "p.jsonl, line 2: 'q' is ['one'], not a text"),
    "an object as text": ("p.jsonl", [{"q": {"en": "hi"}}], TEXT, "line 1: 'q' is {'en': 'hi'}, not a text"),
    "a list as id": ("p.jsonl", [{"q": "x", "i": [1]}], {"text": "q", "id": "i"}, "columns.id: "),
    "no id": ("p.jsonl", [{"q": "x", "i": 1}, {"q": "y", "i": None}], {"text": "q", "id": "i"}, "line 2: 'i' is empty"),
    "an empty id": ("p.jsonl", [{"q": "x", "i": " "}], {"text": "q", "id": "i"}, "line 1: 'i' is empty"),
    "no such nested column": (
        "p.jsonl",
        [{"d": {"question": "x"}}],
        {"text": "d.questoin"},
        "did you mean 'd.question'?",
    ),
    "no such column in a template": (
        "p.jsonl",
        [{"q": "x"}],
        {"text": "{{ p }}"},
        "line 1: '{{ p }}': 'p' is undefined",
    ),
    "a template that is none": (
        "p.jsonl",
        [{"q": "x"}],
        {"text": "{{ q"},
        "line 1: '{{ q': unexpected end of template",
    ),
    "a row that is a list": ("p.jsonl", '{"q": "x"}\n["x"]\n', TEXT, "p.jsonl, line 2: not a JSON object: '[\"x\"]'"),
    "a row that is null": ("p.jsonl", "null\n", TEXT, "line 1: not a JSON object: 'null'"),
    "an item that is a text": ("p.json", '[{"q": "x"},\n"x"]', TEXT, "line 2: not a JSON object: '\"x\"'"),
    "an item that is broken": ("p.json", '[{"q": "x"},\n{"q": oops}' + " " * 70, TEXT, "line 2: not a JSON object"),
    "a list that does not end": (
        "p.json",
        '[{"q": "x"},\n',
        TEXT,
        "line 2: not a JSON object: 'the list does not end'",
    ),
    "an item that does not end": ("p.json", '[{"q": "x"},\n{"q": "y', TEXT, 'line 2: not a JSON object: \'{"q": "y\''),
    "two lists": ("p.json", '[{"q": "x"}]\n[{"q": "y"}]', TEXT, "line 1: more text follows the list"),
    "nested without end": ("p.jsonl", '{"q": ' + "[" * 100_000, TEXT, "line 1: not a JSON object"),
    "messages nested without end": ("p.jsonl", [{"m": "[" * 100_000}], MESSAGES, "no JSON text of messages"),
    "a row of 17 MB": ("p.jsonl", '{"q": "' + "x" * (17 << 20), TEXT, "line 1: too long a row, above 16,777,216"),
    "an item of 17 MB": ("p.json", '[{"q": "' + "x" * (17 << 20), TEXT, "line 1: too long a row, above 16,777,216"),
    "two columns of one name": ("p.csv", "q,q\n1,2\n", TEXT, "p.csv: two columns are called 'q'"),
    "cells that do not fit": (
        "p.csv",
        "q;a\nx;1\ny\n",
        TEXT,
        "line 3: 1 cells where 2 were expected (q, a), with ';' between them; fix",
    ),
    "cut gzip": ("p.jsonl.gz", gzip.compress(b'{"q": "x"}\n' * 999)[:-20], TEXT, "p.jsonl.gz' is damaged"),
    "no gzip": ("p.jsonl.gz", b'{"q": "x"}\n', TEXT, "p.jsonl.gz' is damaged: Not a gzipped file"),
    "gzip of Parquet": ("p.parquet.gz", b"", TEXT, "is of no known kind"),
    "no Arrow": ("p.arrow", b"\xff\xff\xff\xff\xff\xff\xff\xff", TEXT, "p.arrow' is damaged"),
    "no Arrow either": ("p.arrow", b"\xf0\xff\xff\xff" * 9, TEXT, "p.arrow' is damaged"),
    "Latin-1": ("p.csv", "q\nGrüße?\n".encode("latin-1"), TEXT, "is not UTF-8 text"),
    "UTF-16": ("p.csv", "q\nGrüße?\n".encode("utf-16"), TEXT, "is not UTF-8 text"),
    "a role that nobody knows": (
        "p.jsonl",
        turn(role="narrator"),
        MESSAGES,
        "line 2: 'm': the role 'narrator' is none",
    ),
    "a ShareGPT role that nobody knows": (
        "p.jsonl",
        [{"m": [{"from": "bing", "value": "x"}]}],
        MESSAGES,
        "role 'bing'",
    ),
    "a field that nobody reads": (
        "p.jsonl",
        turn(audio={"id": "a1"}),
        MESSAGES,
        "line 2: 'm': a message's field 'audio' is not known: {'id': 'a1'}; fix the row, or name fields",
    ),
    "an image": (
        "p.jsonl",
        turn(content=[IMAGE]),
        MESSAGES,
        "line 2: 'm': a part of its content is of type 'image_url'",
    ),
    "messages that are a text": ("p.jsonl", [{"m": "hello"}], MESSAGES, "line 1: 'm': no JSON text of messages"),
    "messages that are one message": ("p.jsonl", [{"m": TURNS[0]}], MESSAGES, "'m' is not a list of messages: {'role'"),
    "messages that are nothing": ("p.jsonl", [{"m": None}], MESSAGES, "line 1: 'm' is not a list of messages: None"),
    "nothing": ("p.jsonl", "", TEXT, "p.jsonl' holds no prompts; give some"),
    "blanks": ("p.jsonl", [{"q": " "}, {"q": None}], TEXT, "p.jsonl' holds no prompts (2 left out: empty prompt)"),
    "an empty list": ("p.json", "[]", TEXT, "p.json' holds no prompts"),
    "a header alone": ("p.csv", "q,a\n", TEXT, "p.csv' holds no prompts"),
    "answers alone": (
        "p.jsonl",
        [{"m": [TURNS[0], TURNS[2]]}],
        MESSAGES,
        "1 left out: a conversation of system turns alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, columns, said = REFUSED[case]
    path = written(tmp_path, name, content)
    with pytest.raises(InputError) as refused:
        read(path, columns)
    message = str(refused.value)
    assert said in message and refused.value.way_out and len(message) < 400 + len(str(path)), message


def test_keys_of_a_csv_are_refused_for_other_files(tmp_path: Path) -> None:
    path = written(tmp_path, "p.jsonl", [{"q": "x"}])
    for key, value in {"header": ["q"], "delimiter": ";"}.items():
        with pytest.raises(InputError, match=rf"p.jsonl' is no CSV; leave 'prompts.{key}' out"):
            read(path, TEXT, None, **{key: value})


def test_bytes_are_no_reference(tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": ["x"], "a": [b"\xff"]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match="row 1: the reference is bytes"):
        read(tmp_path / "p.parquet", WITH_GOLD)


def test_generate_says_how_it_read_and_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe and the canned answers begin with a byte order mark."""
    path = written(tmp_path, "p.json", '[{"i": 1, "q": "far?"}, {"i": 2, "q": " "}]')
    answers = written(tmp_path, "a.jsonl", BOM + '{"prompt": "far?", "answer": "3 km"}\n')
    values = {
        "name": "files",
        "prompts": {"source": str(path), "licence": "own", "columns": {"text": "q", "id": "i"}},
        "teacher": {"model": "c", "licence": "own", "engine": {"kind": "canned", "answers": str(answers)}},
        "generate": {"n": 1},
    }
    recipe, run = written(tmp_path, "r.yaml", BOM + json.dumps(values)), str(tmp_path / "run")
    assert execute(["generate", str(recipe), "--run", run]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"'{path}' is read as one JSON list" in said and "left out: 1, empty prompt" in said
    (found,) = pq.read_table(tmp_path / "run" / "examples" / "answers.parquet").to_pylist()
    assert found["messages"][-1]["content"] == "3 km"
    for content, why in {
        '[{"i": 1, "q": " "}]': f"'{path}' holds no prompts (1 left out: empty prompt)",
        '[{"i": 1, "q": "x"},\n{"i": 1, "q": "y"}]': f"the id '1' stands on two different prompts ({path}, line 1; ",
    }.items():
        written(tmp_path, "p.json", content)
        assert execute(["generate", str(recipe), "--run", run]) == 2
        assert why in capsys.readouterr().err
