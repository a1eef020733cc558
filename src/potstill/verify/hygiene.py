"""What must not be in a training set twice, or at all: duplicates, and what an evaluation set holds.

Texts are compared as casefolded words (`words`). Memory of a text that is remembered: 0.1 KB (measured
on 200,000), with near duplicates 0.6 KB more (on 40,000).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from potstill.verify.words import runs, shorter, words

_SHINGLE = 3  # words
_BANDS, _ROWS = 12, 5
"""Two texts that share s of their shingles meet in a band with probability 1 - (1 - s^5)^12: 0.99 at s = 0.8, 0.89 at
0.7; whoever meets is compared by all 60 hashes."""


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
        shingles = {" ".join(run) for run in runs(words(text), _SHINGLE)} or {text}
        sketch = self._sketch()
        sketch.update_batch([s.encode() for s in shingles])
        values_H = sketch.hashvalues.astype(np.uint32)
        nearest = max((float((other_H == values_H).mean()) for other_H in self._kept.met(values_H)), default=0.0)
        if nearest > self._overlap:
            return f"shares about {nearest:.0%} of its word triples with an earlier one"
        self._kept.add(values_H)
        return ""


class _Sketches:
    """Sketches that are found by any of their bands: an SQLite database in memory, which names the first sketch with
    each band's values.

    Dimension key: H hashes of a sketch.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE sketches (number INTEGER PRIMARY KEY, hashes BLOB)")
        self._db.execute("CREATE TABLE bands (key INTEGER PRIMARY KEY, number INTEGER)")

    def met(self, values_H: NDArray[np.uint32]) -> Iterator[NDArray[np.uint32]]:
        """Every sketch that was the first with one of the bands."""
        keys = ",".join("?" * _BANDS)
        rows = self._db.execute(
            f"SELECT hashes FROM sketches WHERE number IN (SELECT number FROM bands WHERE key IN ({keys}))",
            _band_keys(values_H),
        )
        return (np.frombuffer(hashes, np.uint32) for (hashes,) in rows)

    def add(self, values_H: NDArray[np.uint32]) -> None:
        number = self._db.execute("INSERT INTO sketches (hashes) VALUES (?)", [values_H.tobytes()]).lastrowid
        rows = ((key, number) for key in _band_keys(values_H))
        self._db.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", rows)


def _band_keys(values_H: NDArray[np.uint32]) -> list[int]:
    """64 bits of a hash of every band and its place."""
    bands = (values_H[at : at + _ROWS].tobytes() + bytes([at]) for at in range(0, _BANDS * _ROWS, _ROWS))
    return [int.from_bytes(hashlib.blake2b(band, digest_size=8).digest(), signed=True) for band in bands]


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
        if found and shorter(found, self._size):
            yield _hash("whole " + " ".join(found)), " ".join(found)
        for tokens in runs(found, self._size):
            run = " ".join(tokens)
            yield _hash(run), run


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
