"""The teacher writes answers to the prompts of a data recipe, until every prompt has what is wanted of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from potstill.dispatch.loop import Dispatcher, Limits, Pulse
from potstill.dispatch.money import DOLLAR, FREE, Budget, Price, read_price
from potstill.engines.sampler import Failure, Sampler, Usage
from potstill.generate.waves import Wanted, Waves, fixed, question_key, written
from potstill.prompts.stream import source_mark, stream_prompts
from potstill.recipe.teacher import Batches, Canned, Gguf, Local, Server
from potstill.recipe.whole import Recipe
from potstill.records import Progress, Prompt, Sample, Watch
from potstill.store.requests import Outcome, Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How far a call goes: the first `limit` prompts, as many answers as `wanted` says (None: `most`), never more."""

    most: int
    wanted: Wanted | None = None
    limit: int | None = None


def price_of(recipe: Recipe) -> Price:
    """What the teacher's tokens cost; nothing where the recipe names no price file."""
    if recipe.generate.prices is None:
        return FREE
    price = read_price(Path(recipe.generate.prices), recipe.teacher.model)
    return price.times(recipe.teacher.engine.price_factor) if isinstance(recipe.teacher.engine, Batches) else price


def load_asks(recipe: Recipe, requests: Requests) -> None:
    """Bring the ledger's list of prompts up to date with the recipe, unless it is."""
    values = recipe.model_dump(mode="json", include={"prompts", "teacher", "seed", "generate"})
    mark = hashlib.sha256(json.dumps([values, source_mark(recipe.prompts)], sort_keys=True).encode()).hexdigest()
    if requests.mark("asks") == mark:
        return
    left_out: Counter[str] = Counter()
    with requests.transaction():
        rows = ((prompt, question_key(recipe, prompt.messages)) for prompt in stream_prompts(recipe.prompts, left_out))
        left_out["duplicate text"] += requests.put_asks(rows)
        requests.put_mark("asks", mark)
        requests.put_mark("left out", json.dumps({reason: n for reason, n in left_out.items() if n}))


def read_kept(requests: Requests, sampler: Sampler, price: Price) -> None:
    """Replies that were kept but not read when a process died are read now; nothing is asked again for them."""
    for kept in requests.unread():
        with requests.transaction():
            try:
                reading = sampler.read(kept.raw)
            except Failure as failure:
                lost = Outcome(attempt=kept.attempt, state="maybe", failure=failure.kind, status=200, cost=kept.worst)
                requests.close([lost])
                continue
            rows = zip(range(kept.sample, kept.sample + kept.samples), reading.answers, strict=False)
            requests.put_written(
                written(kept.question, number, answer, attempt=kept.attempt, max_tokens=kept.max_tokens)
                for number, answer in rows
            )
            usage = reading.usage or Usage(prompt=0, completion=0)
            outcome = Outcome(
                attempt=kept.attempt,
                state="read",
                status=200,
                prompt_tokens=usage.prompt,
                completion_tokens=usage.completion,
                cost=price.of(usage) if reading.usage else kept.worst,
            )
            requests.close([outcome])


def collect(recipe: Recipe, requests: Requests, sampler: Sampler, asking: Asking, watch: Watch) -> None:
    """Ask until nothing is open. Raises BudgetReached, TeacherError or Stopped; every answer heard is kept."""
    price = price_of(recipe)
    requests.outcome_unknown()
    read_kept(requests, sampler, price)
    requests.reopen("failed")
    if asking.wanted is None:
        keeps = recipe.generate.truncated == "keep"
        requests.settle_answered(asking.most, at_least=recipe.generate.max_tokens if keeps else None)
    totals = requests.totals()
    cap = None if recipe.generate.budget is None else int(recipe.generate.budget * DOLLAR)
    budget = Budget(cap, spent=totals.get("paid", 0) + totals.get("maybe", 0), price=price)
    work = Waves(recipe, requests, wanted=asking.wanted or fixed(asking.most), most=asking.most, limit=asking.limit)
    total = requests.count_asks(limit=asking.limit)
    before = requests.count_asks(limit=asking.limit, settled=True)

    def pulse(pulse: Pulse) -> None:
        watch(_progress(pulse, done=before + work.settled, total=total, cap=cap))

    async def run() -> None:
        async with sampler:
            dispatcher = Dispatcher(sampler, requests, work, limits=_limits(recipe), budget=budget, pulse=pulse)
            with _stopping(dispatcher):
                await dispatcher.run()

    asyncio.run(run())


def usable_answers(recipe: Recipe, requests: Requests, *, most: int) -> Iterator[tuple[Prompt, Sample]]:
    """The first `most` answers a prompt, less those that were cut off where the recipe does not keep them."""
    keeps = recipe.generate.truncated == "keep"
    return (row for row in requests.samples(most=most) if keeps or not row[1].cut_off)


def export(recipe: Recipe, requests: Requests, path: Path, *, most: int) -> int:
    """The usable answers as Parquet; returns how many."""
    from potstill.store.answers import write_answers  # with pyarrow, which `check` does without

    rows = usable_answers(recipe, requests, most=most)
    return write_answers(path, rows, teacher=recipe.teacher.model, licence=recipe.licences_of(recipe.teacher))


def _limits(recipe: Recipe) -> Limits:
    match recipe.teacher.engine:
        case Server() as s:
            return Limits(
                start=s.start_in_flight,
                most=s.in_flight,
                requests_per_minute=s.requests_per_minute,
                tokens_per_minute=s.tokens_per_minute,
                attempts=s.attempts,
                retry_seconds=s.retry_seconds,
                patience=s.patience,
            )
        case Batches() as b:
            return Limits(start=b.requests_per_file, most=b.requests_per_file, attempts=b.attempts)
        case Gguf(slots=slots) | Local(slots=slots):
            return Limits(start=4 * slots, most=4 * slots, attempts=2)
        case Canned():
            return Limits(start=1000, most=1000)


@contextmanager
def _stopping(dispatcher: Dispatcher) -> Generator[None]:
    """The first SIGINT or SIGTERM stops gently, the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}

    def restore() -> None:
        for name in names:
            loop.remove_signal_handler(name)
            signal.signal(name, before[name])

    def stop() -> None:
        restore()
        dispatcher.stop()

    for name in names:
        loop.add_signal_handler(name, stop)
    try:
        yield
    finally:
        restore()


def _progress(pulse: Pulse, *, done: int, total: int, cap: int | None) -> Progress:
    seconds = max(pulse.seconds, 1e-9)
    spent = f"${pulse.spent / DOLLAR:.2f}" + (f" of ${cap / DOLLAR:.2f}" if cap is not None else "")
    notes = [
        f"{pulse.requests / seconds:,.0f} replies/s",
        f"{pulse.completion_tokens / seconds:,.0f} tokens/s",
        f"{pulse.in_flight:,} in flight",
        *([spent] if pulse.spent or cap is not None else []),
        *(f"{n:,} {kind}" for kind, n in sorted(pulse.failures.items(), key=lambda item: -item[1])[:3]),
    ]
    facts = {
        "replies_per_second": pulse.requests / seconds,
        "completion_tokens_per_second": pulse.completion_tokens / seconds,
        "in_flight": pulse.in_flight,
        "window": pulse.window,
        "waiting": pulse.waiting,
        "spent": pulse.spent / DOLLAR,
        **{f"failed: {kind}": n for kind, n in pulse.failures.items()},
    }
    return Progress(
        stage="generate", what="teacher answers", done=done, total=total, note=" · ".join(notes), facts=facts
    )
