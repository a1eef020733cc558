"""What must not be in a training set twice, or at all: duplicates, and what an evaluation set holds.

Texts are compared as casefolded words. Memory, measured on 100,000 texts: 0.1 KB for every text that is remembered, 1.6
KB with near duplicates.
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
    earlier one that was kept. datasketch makes the sketches; its MinHashLSH, with the same bands, takes 4.3 KB a text
    where these plain dictionaries take 1.6, and a million texts shall fit into 2 GB."""

    def __init__(self, overlap: float) -> None:
        from datasketch import MinHash  # the extra `checks`; it brings scipy, which takes its time

        self._sketch = partial(MinHash, num_perm=_BANDS * _ROWS, seed=1)
        self._overlap = overlap
        self._bands: list[dict[int, int]] = [{} for _ in range(_BANDS)]
        self._kept: list[NDArray[np.uint32]] = []

    def seen(self, text: str) -> str:
        """How near an earlier text is ("82 % of ..."), "" where none is; then it is remembered."""
        shingles = {" ".join(gram) for gram in ngrams(words(text), _SHINGLE)} or {text}
        sketch = self._sketch()
        sketch.update_batch([s.encode() for s in shingles])
        values = sketch.hashvalues.astype(np.uint32)
        keys = [hash(values[i * _ROWS : (i + 1) * _ROWS].tobytes()) for i in range(_BANDS)]
        met = {band[key] for band, key in zip(self._bands, keys, strict=True) if key in band}
        nearest = max((float((self._kept[other] == values).mean()) for other in met), default=0.0)
        if nearest > self._overlap:
            return f"shares about {nearest:.0%} of its word triples with an earlier one"
        number = len(self._kept)  # one object for all bands
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, number)
        self._kept.append(values)
        return ""


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
