"""Rows of tables that have a bar."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from potstill.report.numbers import count


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a table with a bar of `share` of the widest."""

    label: str
    text: str
    share: float
    small: str = ""
    tone: Literal["", "kept"] = ""


def ranked(rows: Iterable[tuple[str, int, str]], most: int) -> list[Bar]:
    """(label, number, remark) as bars, the largest first; beyond `most` they are summed up."""
    ordered = sorted((row for row in rows if row[1] > 0), key=lambda row: (-row[1], row[0]))
    widest = max((n for _, n, _ in ordered), default=1)
    shown = [Bar(label, f"{n:,}", n / widest, small) for label, n, small in ordered[:most]]
    if rest := ordered[most:]:
        left = sum(n for _, n, _ in rest)
        shown.append(Bar(count(len(rest), "other reason"), f"{left:,}", left / widest, "together"))
    return shown
