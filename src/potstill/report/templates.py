"""What pages and cards are written with: the templates of this folder, whose text is cleaned, and how they write
numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from potstill.report.clean import clean, code, cut
from potstill.report.numbers import (
    commas,
    count,
    dollars,
    duration,
    minus,
    percent,
    plain,
    quantity,
    three_decimals,
    times,
)

_FILTERS: tuple[Callable[..., str], ...] = (
    *(code, cut, commas, count, dollars, duration, minus, percent, plain, quantity, three_decimals, times),
)


def environment(*, html: bool) -> Environment:
    """All text goes through `clean`, and that of HTML through autoescape."""
    made = Environment(
        loader=PackageLoader("potstill", "report"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cleaned,
    )
    filters = cast("dict[str, Any]", made.filters)  # pyright: ignore[reportUnknownMemberType]
    filters.update({write.__name__: write for write in _FILTERS})
    return made


def _cleaned(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
