"""Prices and the budget, in picodollars (1e-12 US dollars): whole numbers, so that a cent is a cent.

The worst case of a request is reserved before it is sent and released for its true price afterwards. What may have been
billed without our hearing of it stays reserved, so the cap holds even if all of it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from potstill.engines.sampler import Ask, Usage
from potstill.errors import BudgetReached, InputError

DOLLAR = 10**12
_PER_MESSAGE, _PER_REQUEST = 16, 64  # tokens that a chat template adds: ChatML needs 5 per message, Llama 3 needs 6
_PER_TOOL = 512  # and what it or the provider says of how to call tools, for each of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Picodollars a token; `cached` is for prompt tokens that the provider had already read."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def of(self, usage: Usage) -> int:
        fresh = usage.prompt - min(usage.cached, usage.prompt)
        return fresh * self.prompt + (usage.prompt - fresh) * self.cached + usage.completion * self.completion

    def worst(self, ask: Ask) -> int:
        """No request can cost more: every token covers at least one byte of the text, or belongs to the template."""
        written = ask.count * max(1, len(ask.continuations)) * ask.max_tokens
        return prompt_bound(ask) * max(self.prompt, self.cached) + written * self.completion

    def times(self, factor: float) -> Price:
        """Rounded up to whole picodollars."""
        prompt, completion, cached = (math.ceil(p * factor) for p in (self.prompt, self.completion, self.cached))
        return Price(prompt=prompt, completion=completion, cached=cached)


FREE = Price()


def prompt_bound(ask: Ask) -> int:
    """Prompt tokens at most, without the tokenizer."""
    if ask.prompt is not None:
        read = _PER_REQUEST + len(ask.prompt.encode())
        return read * max(1, len(ask.continuations)) + _bytes_in(ask.continuations)
    said = sum(_PER_MESSAGE + _bytes_in(message.values()) for message in ask.messages)
    return _PER_REQUEST + said + sum(_PER_TOOL + _bytes_in([tool]) for tool in ask.tools)


def _bytes_in(values: Iterable[object]) -> int:
    return sum(len(value.encode()) if isinstance(value, str) else len(repr(value).encode()) * 2 for value in values)


class Budget:
    """Never lets `spent + reserved` pass the cap. Without a cap it only counts."""

    def __init__(self, cap: int | None, *, spent: int, price: Price = FREE) -> None:
        self.cap, self.spent, self.price, self.reserved = cap, spent, price, 0

    def reserve(self, worst: int) -> bool:
        if self.cap is not None and self.spent + self.reserved + worst > self.cap:
            return False
        self.reserved += worst
        return True

    def settle(self, worst: int, cost: int) -> None:
        self.reserved -= worst
        self.spent += cost

    def reached(self, worst: int) -> BudgetReached:
        """A request that may cost `worst` does not fit any more."""
        assert self.cap is not None
        return BudgetReached(
            f"the budget of ${self.cap / DOLLAR:.2f} is reached: ${self.spent / DOLLAR:.4f} is spent or possibly "
            f"spent, and the next request may cost ${worst / DOLLAR:.4f}",
            way_out="raise generate.budget (or --budget) to go on, every answer is kept",
        )


def read_price(path: Path, model: str) -> Price:
    """The price of `model`. Raises InputError where the file does not say it."""
    try:
        table = cast(object, YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"generate.prices: '{path}' cannot be read", way_out="copy recipes/prices.yaml and edit it"
        ) from None
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {str(error).splitlines()[0]}", way_out="fix the file") from None
    entry = cast("dict[object, object]", table).get(model) if isinstance(table, dict) else None
    if not isinstance(entry, dict):
        raise InputError(
            f"{path} has no price for '{model}'",
            way_out=f"add a line: {model}: {{input: 0.15, output: 0.60}} (US dollars for a million tokens)",
        )
    dollars = cast("dict[str, object]", entry)
    prompt = _picodollars(path, model, dollars, "input")
    return Price(
        prompt=prompt,
        completion=_picodollars(path, model, dollars, "output"),
        cached=_picodollars(path, model, dollars, "cached_input") if "cached_input" in dollars else prompt,
    )


def _picodollars(path: Path, model: str, entry: dict[str, object], name: str) -> int:
    """Dollars for a million tokens, rounded up to picodollars per token."""
    try:
        value = Decimal(str(entry[name])) * DOLLAR / 1_000_000
        if value.is_finite() and value >= 0 and value < DOLLAR:
            return int(value.to_integral_value(rounding="ROUND_CEILING"))
    except (KeyError, InvalidOperation):
        pass
    raise InputError(
        f"{path}: the price '{name}' of '{model}' is {entry.get(name)!r}",
        way_out="give US dollars for a million tokens, such as 0.15",
    )
