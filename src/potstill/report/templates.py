"""What pages and cards are written with: the templates of this folder, whose text is cleaned, and how they write
numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from potstill.recipe.values import public_name
from potstill.report import numbers
from potstill.report.clean import clean, code, cut

_FILTERS: tuple[Callable[..., str], ...] = (
    *(public_name, code, cut, numbers.commas, numbers.count, numbers.dollars, numbers.duration, numbers.minus),
    *(numbers.percent, numbers.plain, numbers.quantity, numbers.three_decimals, numbers.times),
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
