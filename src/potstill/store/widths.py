"""What packed integers take: arithmetic alone, since a plan asks too."""

from __future__ import annotations

from math import ceil, floor, log2


def bytes_of(count: int, bits: int) -> int:
    return ceil(count * bits / 8)


def low_bits(k: int, vocabulary: int) -> int:
    """How many bits of an id the Elias-Fano code writes out."""
    return max(0, floor(log2(vocabulary / k)))


def high_slots(k: int, vocabulary: int) -> int:
    """Marks in the bitmap of the high bits: one an id, and one place for every value that they can have."""
    return ((vocabulary - 1) >> low_bits(k, vocabulary)) + k


def ascending_bytes(k: int, vocabulary: int) -> int:
    """What a row of `pack_ascending` takes: about 2 + log2(V / K) bits per id, within half a bit of the least there
    is for a set, where ids in any order take log2(V)."""
    return bytes_of(k, low_bits(k, vocabulary)) + bytes_of(high_slots(k, vocabulary), 1)
