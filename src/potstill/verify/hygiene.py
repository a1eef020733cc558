"""What must not be in a training set twice, or at all: duplicates, and what an evaluation set holds.

Texts are compared as casefolded words. Memory of a text that is remembered: 0.1 KB (measured
on 200,000), with near duplicates 0.6 KB more (on 40,000).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

_WORDS = re.compile(r"\w+")
_SHINGLE = 3  # words
_CHUNK = 1 << 14  # sketches in one array
_BANDS, _ROWS = 12, 5
"""Two texts that share s of their shingles meet in a band with probability 1 - (1 - s^5)^12: 0.99 at s = 0.8, 0.89 at
0.7; whoever meets is compared by all 60 hashes."""


def words(text: str) -> list[str]:
    return _WORDS.findall(text.casefold())


class Exact:
    """Texts seen before, by 64 bits of a hash: one false alarm in 37 million among a million texts."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def seen(self, text: str) -> bool:
        """Whether the same words came before; they are remembered."""
        key = _hash(" ".join(words(text)))
        if key in self._seen:
            return True
        self._seen.add(key)
        return False


class Near:
    """Texts that share more than `overlap` of their word triples (Jaccard, estimated by MinHash: Broder 1997) with an
    earlier one that was kept. datasketch makes the sketches; its MinHashLSH, with the same bands, takes 4.3 KB per text
    where `_Sketches` takes 0.6, and a million texts shall fit into 2 GB."""

    def __init__(self, overlap: float) -> None:
        from datasketch import MinHash  # the extra `checks`; it brings scipy, which takes its time

        self._sketch = partial(MinHash, num_perm=_BANDS * _ROWS, seed=1)
        self._overlap = overlap
        self._kept = _Sketches()

    def seen(self, text: str) -> str:
        """How near an earlier text is ("82 % of ..."), "" where none is; then it is remembered."""
        shingles = {" ".join(gram) for gram in ngrams(words(text), _SHINGLE)} or {text}
        sketch = self._sketch()
        sketch.update_batch([s.encode() for s in shingles])
        values_H = sketch.hashvalues.astype(np.uint32)
        nearest = max((float((other_H == values_H).mean()) for other_H in self._kept.met(values_H)), default=0.0)
        if nearest > self._overlap:
            return f"shares about {nearest:.0%} of its word triples with an earlier one"
        self._kept.add(values_H)
        return ""


class _Sketches:
    """Sketches that are found by any of their bands: one hash table with linear probing for all bands, four bytes a
    slot, which names the first sketch that has a band's values.

    Dimension key: N sketches, H hashes of a sketch, B bands, E entries (number of the sketch * bands + band + 1).
    """

    def __init__(self) -> None:
        self._chunks: list[NDArray[np.uint32]] = []
        self._count = self._used = 0
        self._slots = np.zeros(1 << 12, np.uint32)  # 0: free

    def met(self, values_H: NDArray[np.uint32]) -> Iterator[NDArray[np.uint32]]:
        """Every sketch that was the first with one of the bands."""
        places = (self._place(band, int(key), values_H) for band, key in enumerate(_band_keys(values_H[None])[0]))
        for entry in {(int(self._slots[at]) - 1) // _BANDS for at in places if self._slots[at]}:
            yield self._at(entry)

    def add(self, values_H: NDArray[np.uint32]) -> None:
        if self._count % _CHUNK == 0:
            self._chunks.append(np.zeros((_CHUNK, _BANDS * _ROWS), np.uint32))
        self._chunks[-1][self._count % _CHUNK] = values_H
        for band, key in enumerate(_band_keys(values_H[None])[0]):
            at = self._place(band, int(key), values_H)
            if not self._slots[at]:
                self._slots[at] = self._count * _BANDS + band + 1
                self._used += 1
        self._count += 1
        if 2 * self._used > len(self._slots):
            self._grow()

    def _at(self, number: int) -> NDArray[np.uint32]:
        return self._chunks[number // _CHUNK][number % _CHUNK]

    def _place(self, band: int, key: int, values_H: NDArray[np.uint32]) -> int:
        """The slot of the band's values, or the free one where they belong."""
        mask, part = len(self._slots) - 1, slice(band * _ROWS, (band + 1) * _ROWS)
        at = key & mask
        while entry := int(self._slots[at]):
            number, other = divmod(entry - 1, _BANDS)
            if other == band and (self._at(number)[part] == values_H[part]).all():
                return at
            at = (at + 1) & mask
        return at

    def _grow(self) -> None:
        """Twice the slots; all entries go to their places a probe at a time, of several for one slot one."""
        entries_E = self._slots[self._slots > 0]
        number_E, band_E = np.divmod(entries_E - 1, np.uint32(_BANDS))
        key_E = np.zeros(len(entries_E), np.uint64)
        for number, chunk_NH in enumerate(self._chunks):
            here_E = number_E // _CHUNK == number
            key_E[here_E] = _band_keys(chunk_NH)[number_E[here_E] % _CHUNK, band_E[here_E]]
        self._slots = np.zeros(2 * len(self._slots), np.uint32)
        mask = np.uint64(len(self._slots) - 1)
        at_E = key_E & mask
        while len(entries_E):
            free_E = self._slots[at_E] == 0
            self._slots[at_E[free_E]] = entries_E[free_E]
            left_E = self._slots[at_E] != entries_E
            entries_E, at_E = entries_E[left_E], (at_E[left_E] + np.uint64(1)) & mask


def _band_keys(values_NH: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """64 mixed bits of every band, shape (N, B); multiplication wraps around."""
    parts_NBR = values_NH.reshape(-1, _BANDS, _ROWS).astype(np.uint64)
    key_NB = np.tile(np.arange(_BANDS, dtype=np.uint64), (len(parts_NBR), 1))
    for row in range(_ROWS):
        key_NB = (key_NB ^ parts_NBR[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        key_NB ^= key_NB >> np.uint64(29)
    return key_NB


class Contamination:
    """Runs of `size` words that stand in an evaluation set. A text of the set that is shorter counts as a whole: a part
    of it would condemn half the language."""

    def __init__(self, texts: Iterable[str], *, size: int) -> None:
        self._size = size
        self._known: set[int] = set()
        for text in texts:
            self._known.update(key for key, _ in self._keys(text))

    def evidence(self, text: str) -> str:
        """The first run of words that the evaluation set holds too, or ""."""
        return next((run for key, run in self._keys(text) if key in self._known), "")

    def _keys(self, text: str) -> Iterator[tuple[int, str]]:
        found = words(text)
        if 0 < len(found) < self._size:
            yield _hash("whole " + " ".join(found)), " ".join(found)
        for gram in ngrams(found, self._size):
            run = " ".join(gram)
            yield _hash(run), run


def ngrams(of: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (of[i : i + size] for i in range(len(of) - size + 1))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
