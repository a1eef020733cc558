"""Every usual file gives the same prompts; splits are disjoint, stable and free of duplicates."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import InputError
from potstill.prompts import PromptSet, load_prompts
from potstill.recipe.choices import ChoiceRecipe

ROWS = [{"id": str(i), "text": f"film number {i}", "rating": (-1) ** i * 2.5} for i in range(40)]


def recipe(source: Path, *, train: int = 20, **prompts: Any) -> ChoiceRecipe:
    values = {
        "name": "t",
        "prompts": {
            "source": str(source),
            "licence": "mit",
            "columns": {"id": "id", "text": "text", "grade": "rating"},
            "answer_by_grade": {"bad": [-4, -1], "good": [1, 4]},
            "split": {"train": train, "validation": 5, "test": 10},
            **prompts,
        },
        "teacher": {"model": "x/y", "licence": "mit"},
        "answers": {"choices": ["bad", "good"]},
        "student": {"layers": 1},
        "train": {"method": {"kind": "sft"}},
    }
    return ChoiceRecipe.model_validate_json(json.dumps(values))


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
    assert load_prompts(recipe(write(tmp_path, kind))) == load_prompts(recipe(write(tmp_path, "jsonl")))


def test_splits_are_disjoint_and_have_the_sizes_asked_for(tmp_path: Path) -> None:
    found = load_prompts(recipe(write(tmp_path, "jsonl")))
    sizes = {name: len(found.split(name)) for name in ("train", "validation", "test")}
    assert sizes == {"train": 20, "validation": 5, "test": 10}
    assert len({p.text for p in found.prompts}) == 35
    assert found.left_out == {"not needed for the splits": 5}
    assert all(p.reference == ("good" if p.grade == 2.5 else "bad") for p in found.prompts)


def test_growing_the_training_split_moves_no_test_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    small, large = load_prompts(recipe(path, train=5)), load_prompts(recipe(path, train=25))
    for name in ("test", "validation"):
        assert small.split(name) == large.split(name)
    assert set(small.split("train")) < set(large.split("train"))


@given(order=st.permutations(range(40)))
def test_the_order_of_the_file_does_not_matter(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    folder = tmp_path_factory.mktemp("order")
    (folder / "a.jsonl").write_text("".join(json.dumps(ROWS[i]) + "\n" for i in order))
    assert load_prompts(recipe(folder / "a.jsonl")).prompts == load_prompts(recipe(write(folder, "jsonl"))).prompts


def test_duplicates_differing_in_case_and_blanks_are_left_out(tmp_path: Path) -> None:
    twins = [{"id": f"t{i}", "text": f"  FILM number   {i} ", "rating": 2} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *twins]))
    found: PromptSet = load_prompts(recipe(path))
    assert found.left_out["duplicate text"] == 40


def test_rows_that_are_refused_empty_or_off_the_grades_are_counted_by_reason(
    tmp_path: Path,
) -> None:
    odd = [{"id": "e", "text": "   ", "rating": 2}, {"id": "g", "text": "so so", "rating": 0.2}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *odd]))
    found = load_prompts(recipe(path), refuse=lambda m: "odd" if m[-1].content.endswith("7") else None)
    assert found.left_out == {
        "empty prompt": 1,
        "grade outside every range": 1,
        "odd": 4,
        "not needed for the splits": 1,
    }


def test_messages_columns_keep_their_turns(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    rows = [{"m": [turns[0], turns[1] | {"content": f"hello {i}"}], "a": "good"} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_prompts(recipe(path, columns={"messages": "m", "answer": "a"}, answer_by_grade=None))
    assert [m.role for m in found.prompts[0].messages] == ["system", "user"]
    assert {p.reference for p in found.prompts} == {"good"}


def test_two_prompts_under_one_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "id": "same"}) + "\n" for row in ROWS))
    with pytest.raises(InputError, match="stands on two different prompts"):
        load_prompts(recipe(path))
