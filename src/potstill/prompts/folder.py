"""Which files a source is made of. A folder that holds several splits is read one split at a time, as its own files,
or the names and folders of its files, call them: rows of a test split must not be trained on unseen."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from potstill.errors import InputError
from potstill.recipe.prompts import DataFiles

TEXTS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
COLUMNAR = (".parquet", ".arrow")
_NO_DATA = {
    *("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"),
    *("readme.txt", "license.txt", "requirements.txt"),
}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_KEYWORDS = {  # those of `datasets`
    "test": {"test", "testing", "eval", "evaluation"},
    "validation": {"validation", "valid", "val", "dev"},
    "train": {"train", "training"},
}
_SHOWN = 12


def files_of(files: DataFiles, key: str) -> list[Path]:
    """The files that are read, in order. Raises InputError naming the recipe's `key`."""
    path = Path(files.source).expanduser()
    if path.is_file():
        if files.source_split is not None:
            raise InputError(
                f"{key}_split is '{files.source_split}', but '{path}' is one file", way_out=f"leave '{key}_split' out"
            )
        return [path]
    if not path.is_dir():
        raise InputError(f"{key}: there is no file at '{path}'", way_out=_nearest(path, key))
    splits = _splits_of(path, key)
    if files.source_split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if files.source_split in splits:
        return splits[files.source_split]
    names = [name or f"files of no split ({found[0].name})" for name, found in splits.items()]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    asked = "several splits" if files.source_split is None else f"no split '{files.source_split}'"
    raise InputError(
        f"{key}: the folder '{path}' holds {asked}: {', '.join(names[:_SHOWN])}{more}",
        way_out=f"name the one to read in '{key}_split', or give a file or a folder inside",
    )


def kind_of(path: Path) -> str | None:
    """The suffix that says how the file is read, in lower case and without .gz; None where nobody can."""
    suffix = _unpacked(path).suffix.lower()
    return suffix if suffix in TEXTS or (suffix in COLUMNAR and _unpacked(path) == path) else None


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def _nearest(path: Path, key: str) -> str:
    siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, siblings, n=1):
        return f"did you mean '{path.parent / near[0]}'?"
    return f"check '{key}' (`make data` fetches the quick start's)"


def _splits_of(folder: Path, key: str) -> dict[str, list[Path]]:
    """The data files of a folder by the name of their split, "" where they have none."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        data = file.name.lower() not in _NO_DATA and not file.name.startswith("cache-") and file.is_file()
        if data and not hidden and kind_of(file) is not None:
            splits.setdefault(_split_of(file, folder), []).append(file)
    if not splits:
        raise InputError(
            f"{key}: the folder '{folder}' holds no data files",
            way_out=f"give one with {', '.join((*TEXTS, *COLUMNAR))} files",
        )
    return splits


def _split_of(file: Path, folder: Path) -> str:
    """The file's split, after the folders of a subset that it lies in: `train`, `main/train`; "" where it has none."""
    parents = file.relative_to(folder).parent.parts
    if parents and (file.parent.parent / "dataset_dict.json").is_file():
        return "/".join(parents)
    stem = _unpacked(file).stem
    if (shard := _SHARD.fullmatch(stem)) and shard[1] not in ("data", "part"):
        return "/".join([*_subset(parents, shard[1]), shard[1]])
    if split := _keyword(stem):
        return "/".join([*_subset(parents, split), split])
    for depth in range(len(parents) - 1, -1, -1):
        if split := _keyword(parents[depth]):
            return "/".join([*_subset(parents[:depth], split), split])
    return ""


def _subset(parents: tuple[str, ...], split: str) -> list[str]:
    return [part for part in parents if part not in ("data", split) and _keyword(part) != split]


def _keyword(name: str) -> str | None:
    words = set(re.split(r"[-._ 0-9]+", name.lower()))
    return next((split for split, keywords in _KEYWORDS.items() if keywords & words), None)
