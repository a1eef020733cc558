"""The header of a GGUF file, read safely and fast: no tensor data, no arrays, every size bounded by the file.

`gguf.GGUFReader` takes seconds to import and trusts the counts in the file (49 bytes can keep it busy for ever), so
nothing here or elsewhere opens a GGUF before this has passed. Format: the GGUF specification, versions 2 and 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO

from potstill.errors import InputError

_MAX_COUNT = 1_000_000
_MAX_STRING = 64 << 20
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
# ggml type -> (elements a block, bytes a block); types that are not here are not checked for size.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Scalar keys and tensor shapes (outermost dimension first)."""

    values: dict[str, int | float | bool | str]
    shapes: dict[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())


def read_header(path: Path) -> GgufHeader:
    """Raises InputError where the file is no GGUF, is cut short, or claims sizes it cannot hold."""
    stat = path.stat()
    return _header(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=4)
def _header(path: Path, _version: tuple[int, int, int]) -> GgufHeader:
    """A plan asks for it a dozen times, and a vocabulary takes a twentieth of a second. Not to be changed."""
    with path.open("rb") as file:
        return _Reader(file, path).header()


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = path.stat().st_size

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise InputError(
                f"'{self._path}' is not a GGUF file (it does not start with the bytes GGUF)",
                way_out="give a .gguf file, a model folder or a hub id",
            )
        version: int = self._scalar("<I")
        if version not in (2, 3):
            raise self._bad(f"version {version} is not supported")
        n_tensors, n_keys = self._count(), self._count()
        values: dict[str, int | float | bool | str] = {}
        for _ in range(n_keys):
            key = self._string()
            value = self._value(self._scalar("<I"))
            if value is not None:
                values[key] = value
        tensors = [self._tensor() for _ in range(n_tensors)]
        alignment = int(values.get("general.alignment", 32))
        if alignment < 1 or alignment > 1 << 20 or alignment & (alignment - 1):
            raise self._bad(f"alignment {alignment} is not a small power of two")
        start = -(-self._file.tell() // alignment) * alignment
        for name, shape, kind, offset in tensors:
            per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
            if start + offset + prod(shape) // per_block * block_bytes > self._size:
                raise self._bad(f"it is cut short inside tensor '{name}'")
        return GgufHeader(values, {name: shape for name, shape, _, _ in tensors})

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_dims = self._string(), self._scalar("<I")
        if n_dims > 4:
            raise self._bad(f"tensor '{name}' has {n_dims} dimensions")
        shape = tuple(self._scalar("<Q") for _ in range(n_dims))[::-1]
        if prod(shape) > self._size * 256:
            raise self._bad(f"tensor '{name}' claims the shape {shape}")
        return name, shape, self._scalar("<I"), self._scalar("<Q")

    def _value(self, kind: int) -> int | float | bool | str | None:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            self._skip_array()
            return None
        raise self._bad(f"unknown value type {kind}")

    def _skip_array(self) -> None:
        kind, count = self._scalar("<I"), self._scalar("<Q")
        if kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING and count * 8 <= self._size:
            read, seek = self._file.read, self._file.seek  # a vocabulary has a hundred thousand of them
            for _ in range(count):
                length = int.from_bytes(read(8), "little")
                if length > self._size:
                    raise self._bad("it is cut short")
                seek(length, 1)
            self._skip(0)
        else:
            raise self._bad(f"an array of {count} values of type {kind}")

    def _count(self) -> int:
        count: int = self._scalar("<Q")
        if count > _MAX_COUNT:
            raise self._bad(f"it claims {count} entries")
        return count

    def _string(self) -> str:
        length: int = self._scalar("<Q")
        if length > _MAX_STRING:
            raise self._bad(f"it claims a text of {length} bytes")
        return self._take(length).decode("utf-8", errors="replace")

    def _scalar(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _skip(self, size: int) -> None:
        if self._file.tell() + size > self._size:
            raise self._bad("it is cut short")
        self._file.seek(size, 1)

    def _take(self, size: int) -> bytes:
        if self._file.tell() + size > self._size:
            raise self._bad("it is cut short")
        return self._file.read(size)

    def _bad(self, what: str) -> InputError:
        return InputError(f"'{self._path}' is a damaged GGUF file: {what}", way_out="download it again")
