"""How numbers are written for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from potstill.dispatch.money import DOLLAR

NBSP = "\u00a0"
DASH = "–"


def minus(text: str) -> str:
    """With a true minus sign, and no minus before a zero."""
    return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")


def commas(n: float) -> str:
    return f"{n:,}"


def percent_bare(share: float) -> str:
    return minus(f"{100 * share:.1f}")


def percent(share: float) -> str:
    return f"{percent_bare(share)}{NBSP}%"


def three_decimals(value: float) -> str:
    return minus(f"{value:.3f}")


def plain(value: float) -> str:
    """Three digits that matter, thousands separated."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return minus(f"{value:,.{digits}f}")


def times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"


def quantity(value: float) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.1f}{NBSP}{word}"
    return f"{value:,.0f}"


def memory(size: float) -> str:
    if size >= 1e9:
        return f"{size / 1e9:.2f}{NBSP}GB"
    return f"{size / 1e6:,.0f}{NBSP}MB" if size >= 1e6 else f"{size / 1e3:,.0f}{NBSP}kB"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s" if seconds < 9.95 else f"{seconds:.0f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest}{NBSP}s" if rest else f"{minutes}{NBSP}min"
    return f"{minutes // 60:,}{NBSP}h {minutes % 60}{NBSP}min"


def count(n: int, one: str, many: str = "") -> str:
    return f"{n:,}{NBSP}{one if n == 1 else many or one + 's'}"


def dollars(picodollars: int) -> str:
    if not picodollars:
        return DASH
    amount = picodollars / DOLLAR
    return f"${amount:,.2f}" if amount >= 0.1 else f"${amount:.4f}"


def interval(ci95: Sequence[float] | None, bare: Callable[[float], str] = percent_bare) -> str:
    """ "80.1 to 84.0", or nothing."""
    return f"{bare(ci95[0])} to {bare(ci95[1])}" if ci95 else ""
