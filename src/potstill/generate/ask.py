"""Asking: bring a ledger up to date with a request, and ask until nothing is open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from potstill.dispatch.money import DOLLAR
from potstill.engines.choose import sampler_for
from potstill.generate.choices import score_choices
from potstill.generate.collect import Asking, collect, load_asks, price_of
from potstill.recipe import GenerationRequest
from potstill.recipe.request import probabilities_of
from potstill.records import Watch
from potstill.store.requests import Requests
from potstill.store.run import open_ledger


@dataclass(frozen=True, slots=True)
class Spent:
    """The sums of a ledger."""

    totals: Mapping[str, int]

    @property
    def dollars(self) -> float:
        """Paid, and possibly paid."""
        return (self.totals.get("paid", 0) + self.totals.get("maybe", 0)) / DOLLAR


def ask(request: GenerationRequest, requests: Requests, asking: Asking, watch: Watch) -> None:
    """Every prompt of the request gets what is wanted of it. An answer in the ledger that still fits is never asked for
    again. Raises a PotstillError; what was heard is kept."""
    if probabilities_of(request) == "computed here":
        score_choices(request, requests, asking, watch)
        return
    price_of(request)
    sampler = sampler_for(request)
    load_asks(request, requests)
    if asking.wanted is not None:
        requests.reopen()
    collect(request, requests, sampler, asking, watch)


def answered(request: GenerationRequest, folder: Path, watch: Watch) -> Spent:
    """The same in a folder with a ledger of its own: a judge's answers, a rescue's, those to test prompts."""
    with open_ledger(folder) as requests:
        ask(request, requests, Asking(most=request.generate.n), watch)
        return Spent(requests.totals())
