"""Figures without any script: SVG in a box of 100 x 100, whose y goes down, and the texts of its axes beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from potstill.report.numbers import minus, percent, three_decimals
from potstill.report.wording import ArmName

_POINTS = 300
_MARKED = 20  # a line of no more points than these shows each of them

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a line; pointing at it shows the title. `size` in pixels."""

    x: float
    y: float
    title: str
    size: float = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """`points` and `faint` (what was smoothed) as SVG writes them. Without a label it is not in the key."""

    label: str
    colour: str
    points: str
    title: str
    marks: Sequence[Mark] = ()
    faint: str = ""
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`key`: (label, colour) of what is drawn."""

    says: str
    across: Sequence[Tick]
    up: Sequence[Tick]
    key: Sequence[tuple[str, str]]
    lines: Sequence[Line] = ()
    blocks: Sequence[Block] = ()


@dataclass(frozen=True, slots=True)
class Axes:
    """Values to places in the box."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        return 100 * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return 100 * (self.top - value) / (self.top - self.bottom)

    def points(self, rows: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.2f},{self.y(y):.2f}" for x, y in rows)

    def across(self, unit: str = "", *, times: float = 1) -> list[Tick]:
        return [
            Tick(self.x(at / times), f"{at:,.0f}{unit}") for at, _ in _round(self.left * times, self.right * times, 6)
        ]

    def up(self, unit: str = "", *, times: float = 1) -> list[Tick]:
        found = _round(self.bottom * times, self.top * times, 5)
        return [Tick(self.y(at / times), f"{minus(f'{at:,.{digits}f}')}{unit}") for at, digits in found]


def _round(low: float, high: float, most: int) -> list[tuple[float, int]]:
    """Round numbers from `low` to `high`, at most so many, each with the digits after the point that it needs."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [(step * i, digits) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def curves(
    says: str, series: Sequence[tuple[ArmName, Points]], *, share: bool = False, mean_of: int = 1, unit: str = "steps"
) -> Chart | None:
    """A line for every arm that has two points or more, each point the mean of the last `mean_of`; None for no line."""
    series = [(name, rows) for name, rows in series if len(rows) > 1]
    if not series:
        return None
    axes = _around([point for _, rows in series for point in rows])
    times, sign, write = (100, "\u00a0%", percent) if share else (1, "", three_decimals)
    lines: list[Line] = []
    for name, rows in series:
        smooth = _running_mean(rows, mean_of)
        every = max(1, -(-len(rows) // _POINTS))
        shown = [*smooth[::every], smooth[-1]]
        lines.append(
            Line(
                label=f"{name.label} {write(smooth[-1][1])}",
                colour=name.colour,
                points=axes.points(shown),
                faint=axes.points(rows[::every]) if mean_of > 1 else "",
                title=f"{name.label}: from {write(smooth[0][1])} to {write(smooth[-1][1])} in {rows[-1][0]:,} {unit}",
                marks=[
                    Mark(axes.x(x), axes.y(y), f"{name.label}, {unit.removesuffix('s')} {x:,}: {write(y)}")
                    for x, y in (smooth if len(smooth) <= _MARKED else ())
                ],
            )
        )
    key = [(line.label, line.colour) for line in lines]
    return Chart(says=says, across=axes.across(), up=axes.up(sign, times=times), key=key, lines=lines)


def logged(metrics: Sequence[Mapping[str, Any]], key: str, arms: Mapping[str, ArmName]) -> list[tuple[ArmName, Points]]:
    """What the steps of every arm logged under `key`, those that did."""
    return [
        (name, [(row["step"], float(row[key])) for row in metrics if row["arm"] == arm and row.get(key) is not None])
        for arm, name in arms.items()
    ]


def _around(points: Points) -> Axes:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Axes(min(xs), max(max(xs), min(xs) + 1), low - min(room, low) if low >= 0 else low - room, high + room)


def _running_mean(rows: Points, width: int) -> Points:
    """Mean of the last `width` values, of fewer at the start."""
    sums = list(accumulate((y for _, y in rows), initial=0.0))
    starts = (max(0, end - width) for end in range(1, len(sums)))
    means = ((sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, start=1))
    return [(x, mean) for (x, _), mean in zip(rows, means, strict=True)]
