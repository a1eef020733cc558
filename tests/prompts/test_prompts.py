"""Every usual file gives the same prompts; splits are disjoint, stable and free of duplicates."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from potstill.errors import InputError
from potstill.prompts.stream import stream_prompts
from potstill.recipe.prompts import PromptFile, Source
from potstill.recipe.task import Choice, Task, Text
from potstill.records import Prompt, Split

ROWS = [{"id": str(i), "text": f"film number {i}", "rating": (-1) ** i * 2.5} for i in range(40)]
TASK = Choice(kind="choice", choices=("bad", "good"), probabilities=None)


def source(path: Path, *, train: int = 20, **prompts: Any) -> Source:
    values = {
        "source": str(path),
        "licence": "mit",
        "columns": {"id": "id", "text": "text", "grade": "rating"},
        "reference_by_grade": {"bad": [-4, -1], "good": [1, 4]},
        "split": {"train": train, "validation": 5, "test": 10},
        **prompts,
    }
    return TypeAdapter[PromptFile](PromptFile).validate_json(json.dumps(values))


def read(
    ask: Source, left_out: Counter[str] | None = None, *, splits: Sequence[Split] | None = None, task: Task = TASK
) -> list[Prompt]:
    return list(stream_prompts(ask, Counter() if left_out is None else left_out, task=task, splits=splits))


def of(prompts: list[Prompt], split: Split) -> list[Prompt]:
    return [prompt for prompt in prompts if prompt.split == split]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    table = pa.Table.from_pylist(ROWS)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "rating"], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "parquet":
        pq.write_table(table, path)
    else:  # what datasets.Dataset.save_to_disk writes
        path = folder / "saved"
        path.mkdir()
        with (
            pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as w,
        ):
            w.write_table(table)
        for name in ("state.json", "dataset_info.json"):
            (path / name).write_text("{}")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "datasets"])
def test_every_format_gives_the_same_prompts(tmp_path: Path, kind: str) -> None:
    assert read(source(write(tmp_path, kind))) == read(source(write(tmp_path, "jsonl")))


def test_splits_are_disjoint_and_have_the_sizes_asked_for(tmp_path: Path) -> None:
    left_out = Counter[str]()
    found = read(source(write(tmp_path, "jsonl")), left_out)
    assert [prompt.split for prompt in found] == ["test"] * 10 + ["validation"] * 5 + ["train"] * 20
    assert len({p.text for p in found}) == 35
    assert left_out == {"not needed for the splits": 5}
    assert all(p.reference == ("good" if p.grade == 2.5 else "bad") for p in found)


def test_the_wanted_splits_alone_are_read_in_the_same_draw(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    everything = read(source(path))
    assert read(source(path), splits=("test",)) == of(everything, "test")
    assert read(source(path), splits=("train", "validation")) == of(everything, "validation") + of(everything, "train")


def test_the_draw_is_the_one_that_runs_of_before_have(tmp_path: Path) -> None:
    found = read(source(write(tmp_path, "jsonl")))
    assert [p.id for p in of(found, "validation")] == ["31", "28", "11", "8", "24"]


def test_a_source_without_a_split_is_all_of_the_one_that_is_wanted(tmp_path: Path) -> None:
    path = source(write(tmp_path, "jsonl"), split=None)
    train, test = read(path), read(path, splits=("test",))
    assert {p.split for p in train} == {"train"} and {p.split for p in test} == {"test"}
    assert [p.id for p in train] == [p.id for p in test] == [row["id"] for row in ROWS]
    assert {p.grade for p in train} == {2.5, -2.5} and {p.reference for p in train} == {"good", "bad"}


def test_growing_the_training_split_moves_no_test_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    small, large = read(source(path, train=5)), read(source(path, train=25))
    for name in ("test", "validation"):
        assert of(small, name) == of(large, name)
    assert {p.id for p in of(small, "train")} < {p.id for p in of(large, "train")}


@given(order=st.permutations(range(40)))
def test_the_order_of_the_file_does_not_matter(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    folder = tmp_path_factory.mktemp("order")
    (folder / "a.jsonl").write_text("".join(json.dumps(ROWS[i]) + "\n" for i in order))
    assert read(source(folder / "a.jsonl")) == read(source(write(folder, "jsonl")))


def test_duplicates_differing_in_case_and_blanks_are_left_out(tmp_path: Path) -> None:
    twins = [{"id": f"t{i}", "text": f"  FILM number   {i} ", "rating": 2} for i in range(40)]
    path, left_out = tmp_path / "rows.jsonl", Counter[str]()
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *twins]))
    read(source(path), left_out)
    assert left_out["duplicate text"] == 40


def test_rows_that_are_empty_or_off_the_grades_are_counted_by_reason(tmp_path: Path) -> None:
    more = [{"id": "e", "text": "   ", "rating": 2}, {"id": "g", "text": "so so", "rating": 0.2}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *more]))
    counted = {"empty prompt": 1, "grade outside every range": 1}
    for ask, rest in ((source(path), {"not needed for the splits": 5}), (source(path, split=None), {})):
        left_out = Counter[str]()
        found = list(stream_prompts(ask, left_out, task=TASK))
        assert left_out == {**counted, **rest} and not {"e", "g"} & {prompt.id for prompt in found}


def test_messages_columns_keep_their_turns(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    rows = [{"m": [turns[0], turns[1] | {"content": f"hello {i}"}], "a": "good"} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(source(path, columns={"messages": "m", "reference": "a"}, reference_by_grade=None))
    assert [m.role for m in found[0].messages] == ["system", "user"]
    assert {p.reference for p in found} == {"good"}


@pytest.mark.parametrize("split", [{"train": 1, "validation": 1, "test": 1}, None])
def test_a_reference_that_is_no_choice_is_refused_with_its_line(tmp_path: Path, split: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"t": f"film {i}", "a": a}) + "\n" for i, a in enumerate(["good", "bad", "so"])))
    ask = source(path, columns={"text": "t", "reference": "a"}, reference_by_grade=None, split=split)
    with pytest.raises(InputError, match=r"rows.jsonl, line 3: the reference 'so' is not one of task.choices"):
        read(ask)
    assert {p.reference for p in read(ask, task=Text())} == {"good", "bad", "so"}


def test_a_grade_that_is_no_number_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROWS[0], "rating": "high"}) + "\n")
    with pytest.raises(InputError, match="line 1: the grade 'high' is not a number"):
        read(source(path, split=None))


def test_a_source_that_is_too_small_says_what_was_left_out(tmp_path: Path) -> None:
    path = source(write(tmp_path, "jsonl"), train=90)
    with pytest.raises(InputError, match=r"asks for 105 prompts .* holds 40"):
        read(path)


def test_two_prompts_under_one_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "id": "same"}) + "\n" for row in ROWS))
    with pytest.raises(InputError, match=r"id 'same' stands on two different prompts \(.*, line 1; .*, line 40\)"):
        read(source(path))
