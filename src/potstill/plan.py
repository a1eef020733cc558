"""What a run will take, before it does it: prompts, requests, tokens, money, licences, memory and time. No weights are
loaded, no torch, nothing is sent.

Tokens to read are an estimate (a quarter of the bytes); tokens to write and dollars are upper bounds. Time comes from a
matrix product measured on this CPU: it is there to tell minutes from hours.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from potstill.dispatch.money import DOLLAR, FREE, Price, prompt_bound
from potstill.engines.sampler import Ask
from potstill.errors import InputError
from potstill.generate.collect import price_of
from potstill.generate.context import context_of
from potstill.generate.exact import spoken_paths
from potstill.generate.require import require_form, require_sections
from potstill.generate.room import require_room
from potstill.licences import Policy, named_licences
from potstill.models.precision import spoken
from potstill.prompts.stream import how_read, stream_prompts
from potstill.recipe import Arm, Recipe, arms_of
from potstill.recipe.request import probabilities_of
from potstill.recipe.task import Choice
from potstill.recipe.teacher import Gguf, Local
from potstill.records import Prompt, Split
from potstill.sizing.job import Lengths, Size, Sizes, examples_of, facts_of_teacher, size_of, sizes_of
from potstill.store.requests import Requests
from potstill.verify.votes import choices_of

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_BYTES_PER_TOKEN = 4
_LOOKED_AT = 16
_SHARE_OF_PEAK = 0.5  # an assumption, not a measurement: what a model reaches of a bare product
_TRAINING_BYTES = 16  # fp32 weight, gradient and two moments
_WEIGHT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A stage, or an arm of it: what it does, tokens it reads and writes at most, estimated seconds and bytes on this
    CPU; None where it is not done in this process, or nothing here tells."""

    stage: str
    what: str
    tokens: int
    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What the first prompts took, and from them what all will: means with 95 % intervals, dollars and tokens."""

    prompts: int
    answers: int
    tokens_written: tuple[float, float, float]
    dollars: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """For as many `prompts` of each split, like those `found`. `requests`, tokens and `dollars` are the teacher's in
    `generate`; `probabilities` says how those of choices are had. Answers are as long as they may be, until a probe
    knows better."""

    recipe: Recipe
    found: Mapping[Split, int]
    prompts: Mapping[Split, int]
    left_out: Mapping[str, int]
    how_read: tuple[str, ...]
    requests: int
    tokens_read: int
    tokens_written: int
    dollars: float
    licences: Mapping[str, Policy]
    probabilities: str | None
    precision: str
    lengths: Lengths
    work: tuple[Work, ...]
    sizes: Sizes | None
    probed: Probed | None = None
    paths: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the self-test says of the models of this process, once probed."""


def plan(recipe: Recipe, *, as_if: int | None = None) -> Plan:
    """The plan for the prompts that there are, or as if there were so many to train on. Raises a PotstillError for
    everything that can be known to be wrong before weights are loaded or anybody is paid."""
    if as_if is not None and as_if < 1:
        raise InputError(f"--prompts is {as_if}", way_out="give a number of prompts, 1 or more")
    policies, named, left_out = require_sections(recipe), named_licences(recipe), Counter[str]()
    require_form(recipe.request)
    asking = _Asking.of(recipe)
    there = _Measured.of(recipe, asking, left_out)
    tested = recipe.evaluate.prompts if recipe.evaluate else None
    found: dict[Split, int] = {split: there.found[split] for split in _SPLITS if there.found[split]}
    prompts: dict[Split, int] = found if as_if is None else {**found, "train": as_if}
    require_room(recipe, there.longest.prompts, there.longest_test.prompts)
    lengths = there.lengths(recipe, asking, prompts["train"])
    planned = Plan(
        recipe=recipe,
        found=found,
        prompts=prompts,
        left_out={reason: count for reason, count in left_out.items() if count},
        how_read=(*how_read(recipe.prompts), *how_read(tested, key="evaluate.prompts.source")),
        requests=_asked(prompts) * asking.requests,
        tokens_read=there.in_context * _asked(prompts) // _asked(found) * asking.times,
        tokens_written=_asked(prompts) * asking.times * asking.written,
        dollars=there.worst * asking.times * _asked(prompts) / (_asked(found) * DOLLAR),
        licences={f"{key.removesuffix('.licence')} ({named[key]})": policy for key, policy in policies.items()},
        probabilities=asking.probabilities,
        precision=spoken(recipe.train.precision),
        lengths=lengths,
        work=(),
        sizes=None,
    )
    return replace(planned, work=tuple(_work(planned)), sizes=sizes_of(recipe, lengths))


def as_probed(planned: Plan, ledger: Path, prompts: int, *, answers: int) -> Plan:
    """With what the first `prompts` took, whose `answers` are in the ledger; sizes are for texts as long as theirs."""
    with Requests(ledger) as requests:
        spent = requests.spent_by_prompt(limit=prompts)
    if not spent:
        raise InputError("the probe brought no answer", way_out="see what failed with potstill generate --limit 20")
    asked = _asked(planned.prompts)
    probed = Probed(
        prompts=len(spent),
        answers=answers,
        tokens_written=_total([tokens for tokens, _ in spent], asked),
        dollars=_total([cost / DOLLAR for _, cost in spent], asked),
    )
    lengths = planned.lengths
    if not isinstance(planned.recipe.task, Choice):
        lengths = replace(lengths, answer=probed.tokens_written[1] / planned.requests)
    sizes, paths = sizes_of(planned.recipe, lengths), spoken_paths(planned.recipe)
    probed_plan = replace(planned, probed=probed, lengths=lengths, sizes=sizes, paths=paths)
    return replace(probed_plan, work=tuple(_work(probed_plan)))


@dataclass(frozen=True, slots=True)
class _Asking:
    """How often a prompt is sent, in how many requests, and the most tokens that may be written each time."""

    times: int
    requests: int
    written: int
    price: Price
    probabilities: str | None

    @staticmethod
    def of(recipe: Recipe) -> _Asking:
        how, price = recipe.generate, price_of(recipe.request)
        match probabilities_of(recipe.request):
            case None | "votes" as said:
                return _Asking(how.n, how.n, how.longest or how.max_tokens, price, said)
            case "computed here" as said:
                return _Asking(1, 1, 0, price, said)
            case "prompt_logprobs" as said:  # one request asks for all choices
                return _Asking(len(choices_of(recipe)), 1, 1, price, said)
            case "completions" | "top_logprobs" as said:
                return _Asking(1, 1, 1, price, said)


class _Longest:
    """A few prompts of the most bytes, so that not all have to be tokenised."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, int, Prompt]] = []
        self._seen = 0

    def look(self, prompt: Prompt, size: int) -> None:
        self._seen += 1
        heapq.heappush(self._kept, (size, -self._seen, prompt))
        if len(self._kept) > _LOOKED_AT:
            heapq.heappop(self._kept)

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for _, _, prompt in sorted(self._kept, reverse=True)]


@dataclass(slots=True)
class _Measured:
    """The prompts that there are; lengths are those of the ones that `generate` asks. `worst`: the most that a reply to
    each can cost, in picodollars."""

    found: Counter[Split] = field(default_factory=Counter[Split])
    own: int = 0
    in_context: int = 0
    longest_own: int = 0
    longest_in_context: int = 0
    worst: int = 0
    longest: _Longest = field(default_factory=_Longest)
    longest_test: _Longest = field(default_factory=_Longest)

    @staticmethod
    def of(recipe: Recipe, asking: _Asking, left_out: Counter[str]) -> _Measured:
        context = tuple(message.as_dict() for message in context_of(recipe.teacher))
        nothing = Ask(messages=(), count=1, max_tokens=asking.written, seed=0, identity="")
        before = prompt_bound(replace(nothing, messages=context)) - prompt_bound(nothing)
        there = _Measured()
        for prompt in _prompts(recipe, left_out):
            there.found[prompt.split] += 1
            turns = tuple(message.as_dict() for message in prompt.messages)
            most = prompt_bound(replace(nothing, messages=turns, tools=prompt.tools))
            (there.longest_test if prompt.split == "test" else there.longest).look(prompt, most)
            if prompt.split == "test":
                continue
            own, whole = most // _BYTES_PER_TOKEN, (before + most) // _BYTES_PER_TOKEN
            there.own, there.longest_own = there.own + own, max(own, there.longest_own)
            there.in_context += whole
            there.longest_in_context = max(whole, there.longest_in_context)
            if asking.price != FREE:
                there.worst += asking.price.worst(replace(nothing, messages=(*context, *turns), tools=prompt.tools))
        return there

    def lengths(self, recipe: Recipe, asking: _Asking, prompts: int) -> Lengths:
        answer = longest = float(asking.written)
        if choices := choices_of(recipe):
            tokens = [1 + len(choice.encode()) / _BYTES_PER_TOKEN for choice in choices]
            answer, longest = sum(tokens) / len(tokens), max(tokens)
        count = _asked(self.found)
        return Lengths(
            prompts=prompts,
            own=self.own / count,
            in_context=self.in_context / count,
            longest_own=self.longest_own,
            longest_in_context=self.longest_in_context,
            answer=answer,
            longest_answer=math.ceil(longest),
        )


def _prompts(recipe: Recipe, left_out: Counter[str]) -> Iterator[Prompt]:
    """Those of the recipe, and of its test set where that is a source of its own."""
    yield from stream_prompts(recipe.prompts, left_out, task=recipe.task, seed=recipe.seed)
    if recipe.evaluate is not None and recipe.evaluate.prompts is not None:
        yield from stream_prompts(recipe.evaluate.prompts, left_out, task=recipe.task, splits=("test",))


def _asked(prompts: Mapping[Split, int]) -> int:
    """Of `generate`: test prompts are asked when the arms are compared."""
    return sum(count for split, count in prompts.items() if split != "test")


def _work(planned: Plan) -> Iterator[Work]:
    recipe, lengths = planned.recipe, planned.lengths
    teacher = facts_of_teacher(recipe.teacher) if isinstance(recipe.teacher.engine, Local | Gguf) else None
    writes = Size(teacher.parameters, teacher.layers * teacher.per_layer) if teacher else None
    arms = [(arm, size_of(arm.student, len(choices_of(recipe)))) for arm in arms_of(recipe)]
    rate = _flops_per_second() * _SHARE_OF_PEAK if writes or any(size for _, size in arms) else 1.0
    read = planned.requests * lengths.read if writes else planned.tokens_read
    tokens = read + planned.tokens_written
    yield Work(
        stage="generate",
        what=f"{planned.requests:,} answers by the teacher",
        tokens=round(tokens),
        seconds=2 * tokens * writes.body / rate if writes else None,
        memory=writes.parameters * _WEIGHT_BYTES if writes else None,
    )
    for arm, size in arms:
        yield _training(arm, size, lengths, rate)
    if recipe.evaluate is not None:
        yield _evaluation(planned, writes, arms, rate)


def _training(arm: Arm, size: Size | None, lengths: Lengths, rate: float) -> Work:
    examples, epochs = examples_of(arm.recipe, lengths.prompts), arm.recipe.train.epochs
    tokens = round(examples * (lengths.own + lengths.answer)) * epochs
    return Work(
        stage="train",
        what=f"{arm.name}: up to {examples:,} examples x {epochs} epochs",
        tokens=tokens,
        seconds=6 * tokens * size.body / rate if size else None,
        memory=size.parameters * _TRAINING_BYTES if size else None,
    )


def _evaluation(planned: Plan, writes: Size | None, arms: list[tuple[Arm, Size | None]], rate: float) -> Work:
    recipe, lengths, count = planned.recipe, planned.lengths, planned.prompts.get("test", 0)
    assert recipe.evaluate is not None
    names = ["teacher", *(arm.name for arm, _ in arms), *(c for c in recipe.compared if c in ("base", "tfidf"))]
    answer = lengths.answer if isinstance(recipe.task, Choice) else recipe.evaluate.max_tokens
    sizes = [writes, *(size for _, size in arms), *([arms[0][1]] if "base" in names else [])]
    each = [lengths.read + answer, *[lengths.own + answer] * (len(sizes) - 1)]
    known = [(tokens, size) for tokens, size in zip(each, sizes, strict=True) if size]
    return Work(
        stage="evaluate",
        what=f"{count:,} test prompts x {len(names)} arms: {', '.join(names)}",
        tokens=round(count * sum(each)),
        seconds=count * sum(2 * tokens * size.body for tokens, size in known) / rate if known else None,
        memory=max(size.parameters for _, size in known) * _WEIGHT_BYTES if known else None,
    )


def _flops_per_second() -> float:
    """What a bare fp32 matrix product reaches here, from a thirtieth of a second of trying."""
    import numpy as np  # a tenth of a second, and not for a served teacher alone

    a = np.ones((512, 512), dtype=np.float32)
    np.matmul(a, a)
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 0.03:
        np.matmul(a, a)
        rounds += 1
    return rounds * 2 * 512**3 / (time.perf_counter() - start)


def _total(values: list[float] | list[int], count: int) -> tuple[float, float, float]:
    """(low, middle, high) of the sum over `count` prompts: normal 95 % interval of the mean, never below nothing."""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
    half = 1.96 * math.sqrt(variance / len(values))
    return max(0.0, mean - half) * count, mean * count, (mean + half) * count
