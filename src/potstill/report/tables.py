"""What tables and bars are made of. Cells hold text, never HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from potstill.report.numbers import count


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    small: str = ""
    kind: Literal["", "number", "prompt", "good", "bad", "wrap"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`marked` is the number of the row that stands out."""

    columns: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    marked: int | None = None


def number(text: str, small: str = "") -> Cell:
    return Cell(text, small, "number")


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
