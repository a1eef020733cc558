"""A line of numbers as the page draws it, without any script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_POINTS = 300

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line in a box of 100 x 100, its points as SVG writes them, and the ends of its axes; `steps` of what it has."""

    says: str
    points: str
    first: str
    last: str
    top: str
    bottom: str
    steps: int
    unit: str


def logged(metrics: Sequence[Mapping[str, Any]], key: str) -> Points:
    """What the steps logged under `key`, those that did."""
    return [(int(row["step"]), float(row[key])) for row in metrics if row.get(key) is not None]


def curve(says: str, rows: Points, *, unit: str = "steps") -> Curve | None:
    """None where there is no line to draw."""
    if len(rows) < 2:
        return None
    rows = [*rows[:: max(1, -(-len(rows) // _POINTS))], rows[-1]]
    top, begin, end = max(value for _, value in rows), rows[0][0], rows[-1][0]
    width, height = max(1, end - begin), top or 1.0
    points = " ".join(f"{100 * (step - begin) / width:.2f},{100 - 100 * value / height:.2f}" for step, value in rows)
    return Curve(
        says=says,
        points=points,
        first=f"{rows[0][1]:.3f}",
        last=f"{rows[-1][1]:.3f}",
        top=f"{top:.2f}",
        bottom="0",
        steps=end,
        unit=unit,
    )
