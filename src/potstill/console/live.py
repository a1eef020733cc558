"""What training says of itself on a terminal: a row of readings under the bars; the same in words for a log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from rich.console import RenderableType
from rich.progress import Progress as Bars
from rich.table import Table

_READINGS = {
    "loss": "loss",
    "kd": "KL",
    "ce": "CE",
    "agreement": "agreement",
    "entropy": "entropy",
    "tokens_per_second": "tokens/s",
    "share_of_peak": "of peak",
    "peak_memory_bytes": "memory",
    "seconds_left": "left",
}
_IN_WORDS = ("tokens_per_second", "share_of_peak", "peak_memory_bytes", "seconds_left")


class Readings(Bars):
    """Bars with the newest readings under them: `facts`, to be replaced and never changed."""

    facts: Mapping[str, float] = MappingProxyType({})

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.facts:
            yield readings(self.facts)


def readings(facts: Mapping[str, float]) -> Table:
    """One column a reading that there is."""
    shown = {name: label for name, label in _labels(facts).items() if name in facts}
    table = Table.grid(padding=(0, 2))
    for _ in shown:
        table.add_column(justify="right", no_wrap=True)
    table.add_row(*(f"[dim]{label}[/]" for label in shown.values()))
    table.add_row(*(spoken(name, facts[name]) for name in shown))
    return table


def in_words(facts: Mapping[str, float]) -> str:
    """How fast, and how long yet: for a line of a log."""
    return ", ".join(
        f"{spoken(name, facts[name])} {_READINGS[name]}" for name in _IN_WORDS if name in facts and facts[name] > 0
    )


def spoken(name: str, value: float) -> str:
    match name:
        case "agreement" | "validation_pass_rate" | "validation_accuracy" | "validation_agreement":
            return f"{value:.0%}"
        case "share_of_peak":
            return f"{value:.1%}"
        case "tokens_per_second":
            return f"{value:,.0f}"
        case "peak_memory_bytes":
            return f"{value / 2**30:.1f} GiB"
        case "seconds_left":
            return duration(value)
        case _:
            return f"{value:.3f}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _labels(facts: Mapping[str, float]) -> dict[str, str]:
    """The names of readings, those of the last validation behind them."""
    scores = [name for name in facts if name.startswith("validation_")]
    return _READINGS | {name: f"val. {name.removeprefix('validation_').replace('_', ' ')}" for name in scores}
