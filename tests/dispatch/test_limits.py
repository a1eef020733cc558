"""The window finds what a server can take; allowances and money are never overdrawn."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.dispatch.failures import delay
from potstill.dispatch.limits import Allowance, Window
from potstill.dispatch.money import DOLLAR, Budget, Price, prompt_bound
from potstill.engines.sampler import Ask, Usage


def feed(window: Window, *, rounds: int, capacity: int, turns_away: bool) -> list[int]:
    """A server with 0.1 s latency up to `capacity`; past it, it queues, or turns the excess away."""
    sizes = list[int]()
    for _ in range(rounds):
        size = window.size
        for number in range(size):
            if turns_away and number >= capacity:
                window.failed(complaint=True, late=False, full=True)
            else:
                window.answered(0.1 if turns_away else 0.1 * max(1.0, size / capacity), full=True)
        sizes.append(size)
    return sizes


def test_the_window_doubles_until_it_is_as_wide_as_allowed() -> None:
    assert max(feed(Window(start=16, most=1000), rounds=20, capacity=10**6, turns_away=False)) == 1000


def test_a_server_that_turns_requests_away_is_kept_full_but_not_flooded() -> None:
    sizes = feed(Window(start=16, most=1000), rounds=600, capacity=100, turns_away=True)[100:]
    assert min(sizes) >= 80 and max(sizes) <= 130, (min(sizes), max(sizes))


def test_a_server_that_only_queues_is_not_flooded_either() -> None:
    sizes = feed(Window(start=16, most=1000), rounds=600, capacity=100, turns_away=False)
    assert sum(sizes[20:]) / len(sizes[20:]) < 200, sizes[-20:]
    assert min(sizes[20:]) >= 64


def replies(window: Window, draw: random.Random, *, share: float, count: int) -> None:
    """A server with room for everybody that complains about a share of requests at random."""
    for _ in range(count):
        if draw.random() < share:
            window.failed(complaint=True, late=False, full=True)
        else:
            window.answered(0.1 * draw.uniform(0.5, 2), full=True)


def test_a_storm_shrinks_the_window_to_one_and_calm_opens_it_again() -> None:
    window, draw = Window(start=256, most=256), random.Random(0)
    replies(window, draw, share=1.0, count=1000)
    assert window.size == 1 and window.storm
    replies(window, draw, share=0.0, count=10_000)
    assert window.size > 20 and not window.storm


def test_a_server_that_answers_nothing_in_time_is_asked_less() -> None:
    window = Window(start=256, most=256)
    for number in range(2000):
        window.answered(0.1, full=True) if number % 8 == 0 else window.failed(complaint=False, late=True, full=True)
    assert window.size < 8


@pytest.mark.parametrize("seed", range(5))
def test_stray_complaints_do_not_end_the_doubling(seed: int) -> None:
    window = Window(start=64, most=1000)
    replies(window, random.Random(seed), share=0.05, count=3000)
    assert window.size > 900


@pytest.mark.parametrize("seed", range(5))
def test_a_few_complaints_at_random_do_not_close_the_window(seed: int) -> None:
    window = Window(start=64, most=256)
    replies(window, random.Random(seed), share=0.06, count=50_000)
    assert window.size > 60


@given(st.lists(st.floats(0.01, 5), min_size=20, max_size=200))
def test_no_minute_has_more_requests_than_allowed(gaps: list[float]) -> None:
    allowance, now, sent = Allowance(30, 0.0), 0.0, list[float]()
    for gap in gaps:
        now += gap
        if allowance.wait(now) == 0:
            allowance.take(1)
            sent.append(now)
    for start in sent:
        assert sum(start <= at < start + 60 for at in sent) <= 31


def test_tokens_may_fall_into_debt_and_are_waited_for() -> None:
    allowance = Allowance(600, 0.0)
    assert allowance.wait(0.0) == 0
    allowance.take(1010)  # ten per second in store, ten per second to come
    assert 100 <= allowance.wait(0.0) <= 101
    assert allowance.wait(101) == 0


asks = st.builds(
    Ask,
    messages=st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), min_size=1).map(tuple),
    count=st.integers(1, 4),
    max_tokens=st.integers(1, 4000),
    seed=st.just(0),
    identity=st.just("x"),
)


@given(asks, st.integers(0, 10**8), st.integers(0, 10**8), st.integers(0, 10**8), st.data())
def test_no_reply_within_the_limits_costs_more_than_the_worst(
    ask: Ask, prompt: int, completion: int, cached: int, data: st.DataObject
) -> None:
    price = Price(prompt=prompt, completion=completion, cached=cached)
    text = sum(len(str(m["content"]).encode()) for m in ask.messages)
    read = data.draw(st.integers(0, text + 5 * len(ask.messages)))  # a token is a byte at least, ChatML adds five
    written = data.draw(st.integers(0, ask.count * ask.max_tokens))
    usage = Usage(prompt=read, completion=written, cached=data.draw(st.integers(0, read)))
    assert price.of(usage) <= price.worst(ask) and read <= prompt_bound(ask)


@given(st.integers(0, 10 * DOLLAR), st.lists(st.tuples(st.integers(1, DOLLAR), st.floats(0, 1)), max_size=50))
def test_spent_and_reserved_never_pass_the_cap(cap: int, requests: list[tuple[int, float]]) -> None:
    budget, flying = Budget(cap, spent=0), list[tuple[int, float]]()
    for worst, share in requests:
        if budget.reserve(worst):
            flying.append((worst, share))
        elif flying:
            reserved, part = flying.pop()
            budget.settle(reserved, int(reserved * part))
        assert budget.spent + budget.reserved <= cap


@given(st.integers(0, 40), st.none() | st.floats(0, 100))
def test_the_wait_doubles_to_a_minute_and_respects_the_server(retries: int, retry_after: float | None) -> None:
    wait = delay(1.0, retries, retry_after, random.Random(retries))
    assert wait >= (retry_after or 0) and wait <= max(90, retry_after or 0)
    assert wait >= min(60, 2**retries) / 2
