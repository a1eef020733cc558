"""`potstill export`: what was selected, as JSON lines that `datasets` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.cli import execute
from potstill.errors import InputError
from potstill.store.examples import export_examples

SAID = 'a "quote", a\nnew line, \u2028, tab\t, \x07, 漢字 🦜'


def examples(folder: Path) -> Path:
    turns = [
        [{"role": "user", "content": f"{i} {SAID}"}, {"role": "assistant", "content": SAID, "reasoning_content": "hm"}]
        for i in range(2500)
    ]
    table = pa.table({"prompt_id": [str(i) for i in range(2500)], "messages": turns, "weight": [0.5] * 2500})
    folder.mkdir()
    pq.write_table(table, folder / "selected.parquet")
    return folder


def test_datasets_reads_the_same_rows_from_both(tmp_path: Path) -> None:
    import datasets

    folder = examples(tmp_path / "examples")
    files = export_examples(folder / "selected.parquet", form="jsonl")
    assert files == {folder / "selected.jsonl": 2500}
    cache = str(tmp_path / "cache")
    lines = datasets.load_dataset("json", data_files=str(folder / "selected.jsonl"), split="train", cache_dir=cache)
    assert lines.to_list() == pq.read_table(folder / "selected.parquet").to_pylist()
    first = (folder / "selected.jsonl").read_bytes()
    assert first.count(b"\n") == 2500
    export_examples(folder / "selected.parquet", form="jsonl")
    assert (folder / "selected.jsonl").read_bytes() == first


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_rescue import recipe_in

    recipe_in(tmp_path, select={"pairs": True})
    words, run = [str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")], tmp_path / "run" / "examples"
    assert execute(["export", *words]) == 2
    assert "holds no selected answers yet; potstill verify first" in capsys.readouterr().err
    assert execute(["run", *words]) == 0
    capsys.readouterr()
    assert execute(["export", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "files": {str(run / "selected.jsonl"): 2, str(run / "pairs.jsonl"): 1}
    }
    assert execute(["export", *words, "--format", "parquet"]) == 0
    assert "2 rows in" in capsys.readouterr().out
    row = json.loads((run / "pairs.jsonl").read_text().splitlines()[0])
    assert row["chosen"][0]["content"] == "51" and row["rejected"][0]["content"] == "15"


def test_nothing_is_written_before_the_verification(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no selected answers yet"):
        export_examples(tmp_path / "selected.parquet", form="parquet")
    assert not list(tmp_path.iterdir())
