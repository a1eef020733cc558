"""The teacher writes answers to prompts, until every prompt has what is wanted of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from potstill.dispatch.failures import lost, paid_for
from potstill.dispatch.limits import Limits
from potstill.dispatch.loop import Dispatcher, Pulse
from potstill.dispatch.money import DOLLAR, FREE, Budget, Price, read_price
from potstill.engines.sampler import Answer, Failure, Sampler, Usage
from potstill.errors import InputError
from potstill.generate.waves import Wanted, Waves, fixed, seed_key, written
from potstill.generate.wire import wire
from potstill.models.identity import named, weights
from potstill.prompts.stream import same_id, source_mark, stream_prompts
from potstill.recipe import GenerationRequest, Recipe
from potstill.recipe.generate import Generate
from potstill.recipe.request import probabilities_of
from potstill.recipe.teacher import Batches, Canned, Gguf, Local, Server, Teacher
from potstill.records import Progress, Prompt, Sample, Watch
from potstill.store.asks import SameId
from potstill.store.requests import Outcome, Requests
from potstill.store.samples import Written


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How far a call goes: the first `limit` prompts, as many answers as `wanted` says (None: `most`), never more."""

    most: int
    wanted: Wanted | None = None
    limit: int | None = None


def price_of(request: GenerationRequest) -> Price:
    """What the teacher's tokens cost; nothing where no price file is named."""
    if request.generate.prices is None:
        return FREE
    price, engine = read_price(Path(request.generate.prices), request.teacher.model), request.teacher.engine
    return price.times(engine.price_factor) if isinstance(engine, Batches) else price


def load_asks(request: GenerationRequest, requests: Requests) -> None:
    """Bring the ledger's list of prompts up to date with the request, unless it is."""
    values, whose = request.model_dump(mode="json"), weights_asked(requests, request.teacher)
    parts = [values, source_mark(request.prompts), whose]
    mark = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    if requests.mark("asks") == mark:
        return
    left_out: Counter[str] = Counter()
    with requests.transaction():
        prompts = stream_prompts(
            request.prompts,
            left_out,
            task=request.task,
            seed=request.seed,
            splits=request.splits,
        )
        rows = ((prompt, seed_key(request, _sendable(request, prompt))) for prompt in prompts)
        try:
            left_out["duplicate text"] += requests.put_asks(rows, weights=whose)
        except SameId as error:
            raise same_id(request.prompts, error.prompt_id) from None
        requests.put_written(_with_own_tags(requests, request.teacher))
        requests.put_mark("asks", mark)
        requests.put_mark("left out", json.dumps({reason: n for reason, n in left_out.items() if n}))


def _with_own_tags(requests: Requests, teacher: Teacher) -> Iterator[Written]:
    """Answers that were read before the recipe said between which tags their teacher thinks."""
    if teacher.reasoning_tags is None:
        return
    for row in requests.written_with(teacher.reasoning_tags[1]):
        answer = Answer(
            text=row.text or "", reasoning=None, finish=row.finish, cut_off=row.cut_off, tool_calls=row.tool_calls
        )
        yield written(row.question, row.sample, answer, attempt=row.attempt, max_tokens=row.max_tokens, teacher=teacher)


def weights_asked(requests: Requests, teacher: Teacher) -> str | None:
    """The hash of the weights that a model in this process answers with, for the keys of its questions: where they are
    not on this machine any more, that of when they were last. None of a served one."""
    if not isinstance(teacher.engine, Gguf | Local):
        return None
    name = f"weights of {named(teacher.model, teacher.revision)}"
    found = weights(teacher.model, teacher.revision)
    if found is not None and found != requests.mark(name):
        requests.put_mark(name, found)
    return found or requests.mark(name)


def _sendable(request: GenerationRequest, prompt: Prompt) -> Prompt:
    """Raises InputError where the teacher's form of request has no place for a part of the prompt."""
    calls = prompt.tools or any(m.role == "tool" or m.tool_calls for m in prompt.messages)
    if calls and isinstance(request.teacher.engine, Server) and request.teacher.engine.form == "anthropic":
        raise InputError(
            f"the prompt '{prompt.id}' has tools, which are not sent in Anthropic's form",
            way_out="ask in OpenAI's form (teacher.engine.form: openai), or leave those prompts out",
        )
    return prompt


def read_kept(requests: Requests, sampler: Sampler, teacher: Teacher, price: Price) -> None:
    """Replies that were kept but not read when a process died are read now; nothing is asked again for them."""
    for kept in requests.unread():
        with requests.transaction():
            try:
                reading = sampler.read(kept.raw)
            except Failure as failure:
                state, cost = paid_for(failure, kept.worst, price)
                requests.close(
                    [Outcome(attempt=kept.attempt, state=state, failure=failure.kind, status=200, cost=cost)]
                )
                continue
            rows = zip(range(kept.sample, kept.sample + kept.samples), reading.answers, strict=False)
            requests.put_written(
                written(
                    kept.question, number, answer, attempt=kept.attempt, max_tokens=kept.max_tokens, teacher=teacher
                )
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


def collect(request: GenerationRequest, requests: Requests, sampler: Sampler, asking: Asking, watch: Watch) -> None:
    """Ask until nothing is open. Raises BudgetReached, TeacherError or Stopped; every answer heard is kept."""
    request = _as_sent(request)
    price, how = price_of(request), request.generate
    requests.outcome_unknown()
    read_kept(requests, sampler, request.teacher, price)
    requests.reopen("failed")
    with requests.transaction():
        answered_before = requests.begin(wire(request)) or isinstance(request.teacher.engine, Batches)
    limits = replace(_limits(request), answered_before=answered_before)  # a provider of batches is heard on entering
    if asking.wanted is None:
        keeps = how.truncated == "keep"
        requests.settle_answered(asking.most, at_least=how.max_tokens if keeps else None)
    totals = requests.totals()
    cap = None if how.budget is None else int(how.budget * DOLLAR)
    budget = Budget(cap, spent=totals.get("paid", 0) + totals.get("maybe", 0), price=price)
    work = Waves(request, requests, wanted=asking.wanted or fixed(asking.most), most=asking.most, limit=asking.limit)
    total = requests.count_asks(limit=asking.limit)
    before = requests.count_asks(limit=asking.limit, settled=True)

    def pulse(pulse: Pulse) -> None:
        watch(_progress(pulse, done=before + work.settled, total=total, cap=cap))

    async def run() -> None:
        async with sampler:
            dispatcher = Dispatcher(sampler, requests, work, limits=limits, budget=budget, pulse=pulse)
            with _stopping(dispatcher):
                await dispatcher.run()

    try:
        asyncio.run(run())
    except Failure as failure:  # where asking begins with a request of its own
        raise lost(failure) from None


def _as_sent(request: GenerationRequest) -> GenerationRequest:
    """A distribution over choices is read off one token, asked for once."""
    if probabilities_of(request) in (None, "votes"):
        return request
    once = {"n": 1, "max_tokens": 1, "truncated": "keep", "longest": None}
    return request.model_copy(update={"generate": request.generate.model_copy(update=once)})


def usable_answers(
    how: Generate, requests: Requests, *, most: int, once: bool = False
) -> Iterator[tuple[Prompt, Sample]]:
    """The first `most` answers a prompt, less those that were cut off where they are not kept; `once`: of prompts that
    share a question to the first alone."""
    keeps = how.truncated == "keep"
    return (row for row in requests.samples(most=most, once=once) if keeps or not row[1].cut_off)


def export(recipe: Recipe, requests: Requests, path: Path, *, most: int) -> int:
    """The usable answers as Parquet, each once: where nothing is checked they are learnt; returns how many."""
    from potstill.store.answers import write_answers  # with pyarrow, which `check` does without

    rows = usable_answers(recipe.generate, requests, most=most, once=True)
    return write_answers(path, rows, teacher=recipe.teacher.model, licence=recipe.licences_of(recipe.teacher))


def _limits(request: GenerationRequest) -> Limits:
    match request.teacher.engine:
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
