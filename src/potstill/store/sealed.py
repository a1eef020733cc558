"""Sealed files: safetensors that carry the SHA-256 of themselves, so that no damaged byte of one is ever used.

The seal stands in the header's metadata and is taken with 64 zeros in its own place: any tool reads the file, ours
checks every byte of it, the header's too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from potstill.store.files import drafted

_UNSEALED = "0" * 64
_SEAL = re.compile(rb'"sealed":"([0-9a-f]{64})')
_DTYPES = {"U8": "u1", "I8": "i1", "U16": "<u2", "BF16": "<u2", "F16": "<f2", "F32": "<f4", "U32": "<u4", "I64": "<i8"}


class Damaged(Exception):
    """What is wrong with a sealed file, as the end of a sentence."""


def write_sealed(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Same tensors, same bytes; whole or not at all."""
    data = bytearray(save(dict(tensors), {"sealed": _UNSEALED + json.dumps(about, sort_keys=True)}))
    at = data.index(_UNSEALED.encode())
    data[at : at + 64] = hashlib.sha256(data).hexdigest().encode()
    with drafted(path) as draft:
        draft.write_bytes(data)


def open_sealed(path: Path) -> tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]:
    """What was written about the file and its columns, which are read from disk as they are used and not yet checked
    against the seal; bf16 comes as the uint16 of its bits. Raises Damaged where the header cannot be read."""
    try:
        data = _bytes_of(path)
        size = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + size].tobytes())
        about = json.loads(header.pop("__metadata__")["sealed"][64:])
        start = 8 + size
        return about, {name: _column(data[start:], entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its header cannot be read ({error})") from None


def check_seal(path: Path) -> None:
    """Reads the whole file, 1.2 GB per second. Raises Damaged where a byte differs from what was written."""
    data = _bytes_of(path)
    size = min(int.from_bytes(data[:8].tobytes(), "little"), len(data))
    head = data[: 8 + size].tobytes()
    found = _SEAL.search(head)
    if found is None:
        raise Damaged("it has no seal")
    digest = hashlib.sha256(head[: found.start(1)] + _UNSEALED.encode() + head[found.end(1) :])
    digest.update(cast("Any", data[8 + size :]))
    if digest.hexdigest().encode() != found[1]:
        raise Damaged("its bytes differ from what was written")


def _bytes_of(path: Path) -> NDArray[np.uint8]:
    """The file in place; an empty one cannot be mapped."""
    return np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)


def _column(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    return cast("NDArray[Any]", data[first:last].view(_DTYPES[entry["dtype"]]).reshape(shape))
