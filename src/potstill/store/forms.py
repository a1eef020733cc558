"""In which forms signals are kept, and what each takes on disk. No torch: a plan asks too."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, inf, log2
from typing import Literal

from potstill.recipe.scoring import HiddenSignal, LiveSignal, SampledSignal, Signal, TopKSignal

LOGP_BITS = 12
_KEY_BYTES = 16 + 4  # an example's key and its number of rows


@dataclass(frozen=True, slots=True)
class TopKForm:
    """The `k` most probable tokens. Ids and the tail's mass are exact; a log-probability is off by at most 1/4090 of
    the distance between the row's largest and smallest (0.004 nats where that is 15)."""

    k: int


@dataclass(frozen=True, slots=True)
class SampledForm:
    """`draws` draws per token, exact. What a row takes depends on how many of them are distinct."""

    draws: int


@dataclass(frozen=True, slots=True)
class HiddenForm:
    """Hidden states: as bf16, or as int8 with a mean and a spread for each channel of a shard and a scale per row."""

    dtype: Literal["int8", "bf16"]


Form = TopKForm | SampledForm | HiddenForm


def form_of(signal: Signal) -> Form | None:
    """The form that a recipe asks for; None where nothing is kept."""
    match signal:
        case TopKSignal(k=k):
            return TopKForm(k)
        case SampledSignal(draws=draws):
            return SampledForm(draws)
        case HiddenSignal(dtype=dtype):
            return HiddenForm(dtype)
        case LiveSignal():
            return None


def bytes_per_token(
    form: Form, vocabulary: int, width: int, *, distinct: float | None = None, tokens_per_example: float = inf
) -> float:
    """What a cache takes on disk for a token, without the head of hidden states, V * D numbers once.

    distinct: mean number of distinct ids per row of draws; without it, the most that there can be.
    tokens_per_example: an example's key takes 20 bytes, which its tokens share.
    """
    key = _KEY_BYTES / tokens_per_example
    match form:
        case TopKForm(k):
            return ascending_bytes(k, vocabulary) + bytes_of(k, LOGP_BITS) + 2 + 4 + 4 + key
        case SampledForm(draws):
            ids = min(draws, vocabulary) if distinct is None else distinct
            return bytes_of(draws, 1) + ids * (2 + high_bits(vocabulary) / 8) + key
        case HiddenForm(dtype):
            return (width + 4 if dtype == "int8" else 2 * width) + key


def high_bits(vocabulary: int) -> int:
    """What an id needs beyond the 16 bits that every one has."""
    return max(0, (vocabulary - 1).bit_length() - 16)


# packed integers


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
