"""Integers of any width in bits, row by row; every row fills whole bytes, so rows can be sliced.

Dimension key: N rows, K integers of a row, B bytes of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.store.forms import high_slots, low_bits

Bytes = NDArray[np.uint8]
Ints = NDArray[Any]


def pack_bits(values_NK: Ints, bits: int) -> Bytes:
    """Shape (N, B): the lowest `bits` bits of every value, 0 to 32 of them."""
    count, k = values_NK.shape
    little_NK4 = np.ascontiguousarray(values_NK, dtype="<u4").view(np.uint8).reshape(count, k, 4)
    each_NKb = np.unpackbits(little_NK4, axis=2, count=bits, bitorder="little") if bits else little_NK4[:, :, :0]
    return np.packbits(each_NKb.reshape(count, k * bits), axis=1, bitorder="little")


def unpack_bits(packed_NB: Bytes, bits: int, k: int) -> Ints:
    """The inverse of `pack_bits`, shape (N, K)."""
    count = len(packed_NB)
    width = 16 if bits <= 16 else 32
    wide_NKw = np.zeros((count, k, width), dtype=np.uint8)
    if bits and k:
        flat = np.unpackbits(packed_NB, axis=1, count=k * bits, bitorder="little")
        wide_NKw[:, :, :bits] = flat.reshape(count, k, bits)
    packed = np.packbits(wide_NKw.reshape(-1), bitorder="little")
    return packed.view("<u2" if width == 16 else "<u4").reshape(count, k)


def pack_ascending(ids_NK: Ints, vocabulary: int) -> tuple[Bytes, Bytes]:
    """The low and the high part of rows of distinct ids in ascending order (Elias 1974; Fano 1971): the low bits as
    they are, the high ones as a bitmap in which the i-th id sets the bit at high + i."""
    count, k = ids_NK.shape
    low = low_bits(k, vocabulary)
    marks = np.zeros((count, high_slots(k, vocabulary)), dtype=np.uint8)
    np.put_along_axis(marks, (ids_NK >> low) + np.arange(k), 1, axis=1)
    return pack_bits(ids_NK & ((1 << low) - 1), low), np.packbits(marks, axis=1, bitorder="little")


def unpack_ascending(low_NB: Bytes, high_NB: Bytes, k: int, vocabulary: int) -> Ints:
    """The inverse of `pack_ascending`: int64, shape (N, K)."""
    low, slots = low_bits(k, vocabulary), high_slots(k, vocabulary)
    marks = np.unpackbits(high_NB, axis=1, count=slots, bitorder="little")
    at_NK = np.flatnonzero(marks).reshape(len(marks), k) - np.arange(len(marks))[:, None] * slots
    return ((at_NK - np.arange(k)) << low) | unpack_bits(low_NB, low, k)
