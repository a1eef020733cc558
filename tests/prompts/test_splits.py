"""A folder that holds several splits is read one at a time: rows of a test split are never trained on unseen."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.errors import InputError
from potstill.prompts.rows import read_rows
from potstill.recipe.prompts import DataFiles


def read(path: Path, split: str | None = None, key: str = "prompts.source") -> list[str]:
    files = DataFiles(source=str(path), source_split=split)
    return [row["q"] for _, row in read_rows(files, Counter(), key=key)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"q": list(texts)}), path)


def dataset_dict(folder: Path) -> None:
    for split, texts in {"train": ["t1", "t2"], "test": ["e1"], "extra": ["x1"]}.items():
        place, table = folder / split, pa.table({"q": texts})
        place.mkdir(parents=True)
        with (
            pa.OSFile(str(place / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as w,
        ):
            w.write_table(table)
        (place / "state.json").write_text("{}")
        (place / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test", "extra"]}')


def hub_snapshot(folder: Path) -> None:
    parquet(folder / "data" / "train-00000-of-00002.parquet", "t1")
    parquet(folder / "data" / "train-00001-of-00002.parquet", "t2")
    parquet(folder / "data" / "test-00000-of-00001.parquet", "e1")
    (folder / "dataset_infos.json").write_text('{\n"default": {}}')
    (folder / "README.md").write_text("---\n---\n")
    written(folder, ".cache/huggingface/x.json", "{}")


def subsets(folder: Path) -> None:
    for subset in ("main", "socratic"):
        parquet(folder / subset / "train-00000-of-00001.parquet", f"{subset} t")
        parquet(folder / subset / "test-00000-of-00001.parquet", f"{subset} e")


def loose_files(folder: Path) -> None:
    written(folder, "my_train.jsonl", '{"q": "t1"}\n')
    written(folder, "dev.csv.gz", gzip.compress(b"q\nd1\n"))
    written(folder, "other.json", '[{"q": "o1"}]')


def own_folders(folder: Path) -> None:
    written(folder, "training/a.jsonl", '{"q": "t1"}\n')
    written(folder, "eval/b.jsonl", '{"q": "e1"}\n')


SPLITS: dict[str, tuple[Callable[[Path], None], str, dict[str, list[str]]]] = {
    "DatasetDict": (dataset_dict, "extra, test, train", {"train": ["t1", "t2"], "test": ["e1"], "extra": ["x1"]}),
    "hub snapshot": (hub_snapshot, "test, train", {"train": ["t1", "t2"], "test": ["e1"]}),
    "hub snapshot with subsets": (
        subsets,
        "main/test, main/train, socratic/test, socratic/train",
        {"main/train": ["main t"], "socratic/test": ["socratic e"]},
    ),
    "loose files": (
        loose_files,
        "validation, train, files of no split (other.json)",
        {"train": ["t1"], "validation": ["d1"]},
    ),
    "folders": (own_folders, "test, train", {"train": ["t1"], "test": ["e1"]}),
}


@pytest.mark.parametrize("case", SPLITS)
def test_splits_are_never_mixed(tmp_path: Path, case: str) -> None:
    make, names, splits = SPLITS[case]
    make(tmp_path / "ds")
    for wanted, begins in ((None, f"several splits: {names};"), ("trian", f"no split 'trian': {names};")):
        with pytest.raises(InputError) as refused:
            read(tmp_path / "ds", wanted)
        assert begins in str(refused.value) and "'prompts.source_split'" in str(refused.value)
    for split, texts in splits.items():
        assert read(tmp_path / "ds", split) == texts


def test_a_folder_of_one_split_or_of_none_is_read_whole(tmp_path: Path) -> None:
    parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", "t1")
    written(tmp_path, "plain/latest.jsonl", '{"q": "a"}\n')
    written(tmp_path, "plain/sub/contest.jsonl", '{"q": "b"}\n')
    written(tmp_path, "plain/README.txt", "no data")
    assert read(tmp_path / "hub") == ["t1"]
    assert read(tmp_path / "plain") == ["a", "b"]
    with pytest.raises(InputError, match=r"prompts.source_split is 'train', but '.*' is one file; leave"):
        read(tmp_path / "plain" / "latest.jsonl", "train")


def test_the_key_that_is_named_is_that_of_the_section(tmp_path: Path) -> None:
    dataset_dict(tmp_path / "ds")
    with pytest.raises(InputError, match=r"select.evaluation.source: .*; name the one to read in 'select.evaluation.s"):
        read(tmp_path / "ds", key="select.evaluation.source")
