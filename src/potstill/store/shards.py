"""The shards of a cache folder and where each example lies in them; damaged ones are told and left out.

`shard-000007.safetensors`: one row per token in the columns of its form, and for each example its key and how many rows
it has. Dimension key: E examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.store.sealed import Damaged, check_seal, open_sealed


@dataclass(slots=True)
class Shard:
    """`first_E` are the examples' first rows; `checked` is true once every byte was found to be what was written."""

    path: Path
    columns: Mapping[str, NDArray[Any]]
    keys_E: NDArray[np.bytes_]
    rows_E: NDArray[np.int64]
    first_E: NDArray[np.int64]
    checked: bool = False
    draws_before: NDArray[np.int64] | None = None
    """Of drawn tokens: how many ids lie before each row, and after the last."""

    @classmethod
    def open(cls, path: Path, stamp: str) -> Shard:
        """Raises Damaged where it cannot be read or was written by another cache."""
        about, columns = open_sealed(path)
        try:
            if about["cache"] != stamp:
                raise Damaged("it belongs to another cache")
            keys_E = np.ascontiguousarray(columns["key"]).view("S16").reshape(-1)
            rows_E = columns["rows"].astype(np.int64)
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"it has no examples ({error})") from None
        return cls(path, columns, keys_E, rows_E, rows_E.cumsum() - rows_E)

    def check(self) -> None:
        """Raises Damaged; reads the file once."""
        if not self.checked:
            check_seal(self.path)
            if "runs" in self.columns:
                each = np.bitwise_count(self.columns["runs"]).sum(1, dtype=np.int64)
                self.draws_before = np.concatenate([[0], each.cumsum()])
            self.checked = True


@dataclass(slots=True)
class Shards:
    """`damage` has one sentence for each damaged shard; their examples count as missing."""

    folder: Path
    stamp: str
    damage: list[str] = field(default_factory=list[str])
    _open: list[Shard] = field(default_factory=list[Shard])
    _left_out: set[Path] = field(default_factory=set[Path])
    _index: tuple[NDArray[np.bytes_], NDArray[np.int64], NDArray[np.int64]] | None = None

    def refresh(self) -> None:
        """Take in what was written since, by this process or another."""
        known = {shard.path for shard in self._open} | self._left_out
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path not in known:
                try:
                    self._open.append(Shard.open(path, self.stamp))
                except FileNotFoundError:
                    continue  # its writer just dropped it
                except Damaged as wrong:
                    self._leave_out(path, wrong)
                self._index = None

    def find(self, keys: Sequence[bytes]) -> list[tuple[Shard, int] | None]:
        """For each key its shard and the number of the example within it, or None. Every shard that has one of them is
        checked first."""
        while True:
            shard_K, example_K = self._look_up(keys)
            for number in np.unique(shard_K[shard_K >= 0]):
                shard = self._open[number]
                try:
                    shard.check()
                except (Damaged, FileNotFoundError) as wrong:
                    self._open.remove(shard)
                    self._index = None
                    self._leave_out(shard.path, wrong)
                    break
            else:
                places = zip(shard_K.tolist(), example_K.tolist(), strict=True)
                return [None if shard < 0 else (self._open[shard], example) for shard, example in places]

    def next_path(self) -> Path:
        taken = [int(path.stem.removeprefix("shard-")) for path in self.folder.glob("shard-*.safetensors")]
        return self.folder / f"shard-{max(taken, default=-1) + 1:06d}.safetensors"

    def sweep(self) -> None:
        """The writer alone: remove what is damaged, and drafts of a process that was killed."""
        for path in (*self._left_out, *self.folder.glob(".*.safetensors-*")):
            path.unlink(missing_ok=True)
        self._left_out.clear()

    def _leave_out(self, path: Path, wrong: Exception) -> None:
        self._left_out.add(path)
        self.damage.append(f"signals in '{path}' are damaged: {wrong}; its examples count as missing")

    def _look_up(self, keys: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._index is None:
            self._index = self._indexed()
        sorted_E, shard_E, example_E = self._index
        wanted = np.array(keys, dtype="S16")
        if not len(sorted_E):
            return np.full(len(wanted), -1), np.zeros(len(wanted), dtype=np.int64)
        at = np.searchsorted(sorted_E, wanted).clip(max=len(sorted_E) - 1)
        return np.where(sorted_E[at] == wanted, shard_E[at], -1), example_E[at]

    def _indexed(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64], NDArray[np.int64]]:
        """Keys in order, with the number of their shard and theirs in it: 32 bytes per example."""
        empty: list[NDArray[Any]] = [np.zeros(0, dtype=np.int64)]
        keys_E = np.concatenate([np.zeros(0, dtype="S16"), *(shard.keys_E for shard in self._open)])
        shard_E = np.concatenate(empty + [np.full(len(s.rows_E), n) for n, s in enumerate(self._open)])
        example_E = np.concatenate(empty + [np.arange(len(s.rows_E)) for s in self._open])
        order = np.argsort(keys_E, kind="stable")
        return keys_E[order], shard_E[order], example_E[order]
