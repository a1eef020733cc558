"""The table of near-duplicate sketches finds exactly what plain dictionaries of bands find."""

from __future__ import annotations

import numpy as np

from potstill.verify.hygiene import _BANDS, _ROWS, _Sketches  # pyright: ignore[reportPrivateUsage]


def test_the_table_is_one_dictionary_a_band() -> None:
    rng = np.random.default_rng(0)
    pool_NH = rng.integers(0, 2**32, (800, _BANDS * _ROWS), dtype=np.uint32)
    table, bands, kept = _Sketches(), [dict[bytes, int]() for _ in range(_BANDS)], list[bytes]()
    found = 0
    for _ in range(4000):
        values_H = pool_NH[rng.integers(len(pool_NH))].copy()
        changed = rng.random(_BANDS) < 0.7  # many texts share some bands with several others
        values_H[::_ROWS][changed] = rng.integers(0, 2**32, changed.sum(), dtype=np.uint32)
        keys = [values_H[b * _ROWS : (b + 1) * _ROWS].tobytes() for b in range(_BANDS)]
        expected = {band[key] for band, key in zip(bands, keys, strict=True) if key in band}
        met = sorted(other_H.tobytes() for other_H in table.met(values_H))
        assert met == sorted(kept[number] for number in expected)
        found += len(met)
        table.add(values_H)
        for band, key in zip(bands, keys, strict=True):
            band.setdefault(key, len(kept))
        kept.append(values_H.tobytes())
    assert found > 4000
