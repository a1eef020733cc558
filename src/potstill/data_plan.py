"""What a data recipe will ask and cost, before it does: exact prompts, estimated tokens, and the most it can cost.

A probe asks the first few prompts of the run for real. Its answers stay in the run folder, so nothing is paid twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from potstill.dispatch.money import DOLLAR, FREE, Price, prompt_bound
from potstill.engines.sampler import Ask
from potstill.errors import InputError
from potstill.generate.collect import price_of
from potstill.generate.told import told_first
from potstill.harvest import check_sections, harvest
from potstill.licences import Policy
from potstill.prompts.stream import described, stream_prompts
from potstill.recipe.whole import Recipe
from potstill.records import Watch, unwatched
from potstill.sizing.job import Sizes, Text, sizes_of
from potstill.store.requests import Requests

_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What the first prompts took, and from them what all will: means with 95 % intervals, dollars and tokens."""

    prompts: int
    answers: int
    tokens_written: tuple[float, float, float]
    dollars: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """For `prompts` like those `found`. `tokens_read` is an estimate (a quarter of the bytes); `tokens_written` and
    `dollars` are upper bounds. The `sizes` of a recipe with a student are those of `text`, whose answers are as long as
    they may be until a probe knows better."""

    recipe: Recipe
    found: int
    prompts: int
    left_out: Mapping[str, int]
    requests: int
    tokens_read: int
    tokens_written: int
    dollars: float
    licences: Mapping[str, Policy]
    text: Text
    sizes: Sizes | None


def plan_data(recipe: Recipe, *, as_if: int | None = None) -> DataPlan:
    """The plan for the prompts that there are, or as if there were so many like them. Raises a PotstillError for
    everything that can be known to be wrong before a request. Sends nothing."""
    if as_if is not None and as_if < 1:
        raise InputError(f"--prompts is {as_if}", way_out="give a number of prompts, 1 or more")
    licences = {
        f"{key.removesuffix('.licence')} ({recipe.licensed[key]})": policy
        for key, policy in check_sections(recipe).items()
    }
    how, left_out = recipe.generate, Counter[str]()
    there, worst = _text(recipe, price_of(recipe), left_out)
    found, prompts = there.prompts, as_if or there.prompts
    text = replace(there, prompts=prompts)
    return DataPlan(
        recipe=recipe,
        found=found,
        prompts=prompts,
        left_out=left_out,
        requests=prompts * how.n,
        tokens_read=round(there.told * found) * prompts // found * how.n,
        tokens_written=prompts * how.n * there.longest_answer,
        dollars=worst * how.n * prompts / (found * DOLLAR),
        licences=licences,
        text=text,
        sizes=sizes_of(recipe, text),
    )


def _text(recipe: Recipe, price: Price, left_out: Counter[str]) -> tuple[Text, int]:
    """The prompts that there are, and the most that one answer to each can cost, in picodollars."""
    first = tuple(m.as_dict() for m in told_first(recipe.teacher))
    longest = recipe.generate.longest or recipe.generate.max_tokens
    nothing = Ask(messages=(), count=1, max_tokens=longest, seed=0, identity="")
    before = prompt_bound(replace(nothing, messages=first)) - prompt_bound(nothing)
    found = worst = own = told = longest_own = longest_told = 0
    for prompt in stream_prompts(recipe.prompts, left_out):
        turns = tuple(m.as_dict() for m in prompt.messages)
        most = prompt_bound(replace(nothing, messages=turns))
        mine, whole = most // _BYTES_PER_TOKEN, (before + most) // _BYTES_PER_TOKEN
        own, longest_own = own + mine, max(mine, longest_own)
        told, longest_told = told + whole, max(whole, longest_told)
        worst += 0 if price == FREE else price.worst(replace(nothing, messages=(*first, *turns)))
        found += 1
    if not found:
        raise InputError(f"prompts: {described(recipe.prompts)} holds no prompts", way_out="give some")
    text = Text(
        prompts=found,
        own=own / found,
        told=told / found,
        longest_own=longest_own,
        longest_told=longest_told,
        answer=longest,
        longest_answer=longest,
    )
    return text, worst


def as_probed(plan: DataPlan, probed: Probed) -> DataPlan:
    """With sizes for answers as long as the probe's were."""
    text = replace(plan.text, answer=probed.tokens_written[1] / plan.requests)
    return replace(plan, text=text, sizes=sizes_of(plan.recipe, text))


def probe(recipe: Recipe, folder: Path, prompts: int, *, total: int, watch: Watch = unwatched) -> Probed:
    """Answer the first `prompts` prompts for real and say what all `total` will take."""
    found = harvest(recipe, folder=folder, limit=prompts, watch=watch)
    with Requests(folder / "ledger.sqlite") as requests:
        spent = requests.spent_by_prompt(limit=prompts)
    if not spent:
        raise InputError("the probe brought no answer", way_out="see what failed with potstill generate --limit 20")
    return Probed(
        prompts=len(spent),
        answers=found.exported,
        tokens_written=_total([tokens for tokens, _ in spent], total),
        dollars=_total([cost / DOLLAR for _, cost in spent], total),
    )


def _total(values: list[float] | list[int], count: int) -> tuple[float, float, float]:
    """(low, middle, high) of the sum over `count` prompts: normal 95 % interval of the mean, never below nothing."""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
    half = 1.96 * math.sqrt(variance / len(values))
    return max(0.0, mean - half) * count, mean * count, (mean + half) * count
