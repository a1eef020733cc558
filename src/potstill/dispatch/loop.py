"""The loop that keeps a teacher busy: choose, write the intent, send, keep the raw reply, read it, go on.

One task a request in flight; everything else happens here, in one place and one thread, in three transactions a turn:
raw replies; then what was read of them together with the intents of the next requests. Failed work goes back to a queue
with the time of its next attempt and frees its slot.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from potstill.dispatch.failures import AGAIN, MEANINGS, delay, lost, paid_for
from potstill.dispatch.limits import Allowance, Limits, Window
from potstill.dispatch.money import FREE, Budget, prompt_bound
from potstill.engines.sampler import Ask, Failure, Reading, Sampler, Usage
from potstill.errors import PotstillError, Stopped, TeacherError
from potstill.store.requests import Intent, Outcome, Replied, Requests

_TURN = 0.01  # seconds between turns: replies that come meanwhile share a transaction
_AT_ONCE = 128  # replies read and requests sent a turn, so that no turn holds the loop for long
_DRAIN = 10.0  # seconds that requests in flight are given when the run is stopped
_GIVEN_UP = 20  # so many, and not one success: the recipe or the server is wrong, not the prompts
_FIRST_TRIES = 3  # connections to a server that was never heard: `patience` is for one that has answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request still to be answered. `failed` attempts count against it; `retries` are all that were sent again."""

    question: int
    sample: int
    ask: Ask
    failed: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What the work made of a reply: requests that follow from it, and how many of its answers are no use."""

    then: tuple[Job, ...] = ()
    wasted: int = 0


class Work(Protocol):
    """What there is to ask. Called inside a transaction of the same ledger."""

    def next(self) -> Job | None:
        """The next new request, or None where there is none at the moment."""
        ...

    def answered(self, job: Job, attempt: int, reading: Reading) -> Taken: ...

    def gave_up(self, job: Job, attempt: int, why: str, *, final: bool) -> tuple[Job, ...]: ...

    @property
    def exhausted(self) -> bool:
        """Nothing is left to be started."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """How it goes, for whoever watches. Money in picodollars, tokens and requests since the start of this run."""

    in_flight: int
    window: int
    waiting: int
    requests: int
    completion_tokens: int
    seconds: float
    spent: int
    failures: dict[str, int]


_Lost = tuple[Job, int, Failure]
_Heard = tuple[int, Job, bytes | Failure, float]


class Dispatcher:
    """Runs until the work is done, the budget is reached, the teacher is lost, or `stop` is called."""

    def __init__(
        self,
        sampler: Sampler,
        requests: Requests,
        work: Work,
        *,
        limits: Limits,
        budget: Budget,
        pulse: Callable[[Pulse], None],
    ) -> None:
        now = time.monotonic()
        self._sampler, self._requests, self._work = sampler, requests, work
        self._limits, self._budget, self._pulse = limits, budget, pulse
        self._window = Window(start=limits.start, most=limits.most)
        self._requests_left = Allowance(limits.requests_per_minute, now)
        self._tokens_left = Allowance(limits.tokens_per_minute, now)
        self._draw = random.Random(0)
        self._retries: list[tuple[float, int, Job]] = []
        self._order = itertools.count()
        self._put_back: Job | None = None
        self._flying: dict[int, tuple[asyncio.Task[None], int]] = {}
        self._heard: list[_Heard] = []
        self._wake = asyncio.Event()
        self._hold_until = 0.0
        self._began = self._last_pulse = now
        self._failing_since: float | None = None
        self._abandoned = self._full = False
        self._there = limits.answered_before
        self._refused: list[_Lost] = []
        self._last_loss: Failure | None = None
        self._successes = self._given_up = self._completion_tokens = 0
        self._failures: dict[str, int] = {}
        self._why_stop: Exception | None = None

    def stop(self) -> None:
        """Send nothing more; what is in flight has a few seconds to come home."""
        self._end(Stopped("stopped, every answer is kept", way_out="the same command goes on from here"))

    async def run(self) -> None:
        """Raises BudgetReached, TeacherError or Stopped; whatever it raises, everything heard is in the ledger."""
        try:
            self._turn()
            while not self._over():
                await self._pause()
                self._turn()
        finally:
            await self._land()
        self._pulse(self._state(time.monotonic()))
        if self._why_stop:
            raise self._why_stop

    def _over(self) -> bool:
        if self._heard or (self._flying and not self._abandoned):
            return False
        return self._why_stop is not None or (self._idle and not self._refused)

    @property
    def _idle(self) -> bool:
        return self._work.exhausted and not (self._flying or self._heard or self._retries or self._put_back)

    async def _pause(self) -> None:
        now = time.monotonic()
        due = self._retries[0][0] - now if self._retries else 0.5
        if self._heard:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(min(0.5, max(due, _TURN))):
                await self._wake.wait()
            await asyncio.sleep(0)
            if len(self._heard) < _AT_ONCE:
                await asyncio.sleep(_TURN)
        except TimeoutError:
            pass
        self._wake.clear()

    def _turn(self) -> None:
        heard, self._heard = self._heard[:_AT_ONCE], self._heard[_AT_ONCE:]
        self._keep(heard)
        now = time.monotonic()
        if not heard and self._room() <= 0:
            self._look_around(now)
            return
        self._full = len(self._flying) >= self._window.size * 0.9
        with self._requests.transaction():
            self._requests.close([self._close(now, *one) for one in heard])
            jobs = self._choose(now)
            numbers = self._requests.send([_intent(job, worst) for job, worst in jobs])
        for number, (job, worst) in zip(numbers, jobs, strict=True):
            self._flying[number] = (asyncio.create_task(self._attempt(number, job)), worst)
        if not self._successes and not self._heard:
            self._despair(now)
        if len(jobs) == _AT_ONCE:
            self._wake.set()  # there may be room for more
        self._look_around(now)

    def _keep(self, heard: list[_Heard]) -> None:
        """Raw replies into the ledger, before anybody reads them."""
        raw = [Replied(attempt=n, raw=said, seconds=s) for n, _, said, s in heard if isinstance(said, bytes)]
        if raw:
            with self._requests.transaction():
                self._requests.replied(raw)

    async def _attempt(self, number: int, job: Job) -> None:
        start = time.monotonic()
        try:
            said: bytes | Failure = await self._sampler.ask(job.ask)
        except Failure as failure:
            said = failure
        except Exception as error:  # our bug: told by the loop, not lost in a task
            said = Failure("unreadable", type(error).__name__)
            self._end(error)
        self._heard.append((number, job, said, time.monotonic() - start))
        self._wake.set()

    # what was heard

    def _close(self, now: float, number: int, job: Job, said: bytes | Failure, seconds: float) -> Outcome:
        worst = self._flying.pop(number)[1]
        if isinstance(said, bytes):
            try:
                reading = self._sampler.read(said)
            except Failure as failure:
                said = failure
            else:
                self._window.answered(seconds, full=self._full)
                return self._success(now, number, job, reading, worst)
        self._window.failed(complaint=MEANINGS[said.kind].complaint, late=said.kind == "too slow", full=self._full)
        return self._failure(now, number, job, said, worst)

    def _success(self, now: float, number: int, job: Job, reading: Reading, worst: int) -> Outcome:
        self._failing_since, self._there = None, True
        self._successes += 1
        while self._refused:
            self._give_up(now, self._refused.pop(), final=True)
        usage = reading.usage or Usage(prompt=0, completion=0)
        cost = self._budget.price.of(usage) if reading.usage else worst
        self._budget.settle(worst, cost)
        self._completion_tokens += usage.completion
        self._tokens_left.take(usage.prompt + usage.completion - self._guess(job.ask))
        if self._budget.cap is not None and cost > worst:
            problem = (
                f"the teacher billed {usage.completion} tokens where {job.ask.count * job.ask.max_tokens} was the limit"
            )
            self._end(TeacherError(problem, way_out="set teacher.engine.limit_field, or run without a budget"))
        taken = self._work.answered(job, number, reading)
        for following in taken.then:
            self._retry(now, following)
        return Outcome(
            attempt=number,
            state="read",
            status=200,
            prompt_tokens=usage.prompt,
            completion_tokens=usage.completion,
            cost=cost,
            wasted=cost * taken.wasted // len(reading.answers),
        )

    def _failure(self, now: float, number: int, job: Job, failure: Failure, worst: int) -> Outcome:
        means = MEANINGS[failure.kind]
        if failure.kind not in self._failures:
            self._requests.put_said(failure.kind, failure.detail)
        self._failures[failure.kind] = self._failures.get(failure.kind, 0) + 1
        self._failing_since = self._failing_since or now
        self._there = self._there or failure.status is not None
        state, cost = paid_for(failure, worst, self._budget.price)
        self._budget.settle(worst, cost)
        failed = job.failed + means.counts
        nobody = failure.kind == "no connection" and not self._there and job.retries + 1 >= _FIRST_TRIES
        if means.then == "stop" or nobody:
            self._end(lost(failure))
            self._retry(now, job)
        elif means.then == "give up" or failed >= self._limits.attempts:
            self._given_up, self._last_loss = self._given_up + 1, failure
            what, final = (job, number, failure), means.then == "give up"
            if final and not self._successes:  # nobody knows yet whether it is because of the prompt or of the recipe
                self._refused.append(what)
            else:
                self._give_up(now, what, final=final)
        else:
            wait = delay(self._limits.retry_seconds, job.retries, failure.retry_after, self._draw)
            self._retry(now + wait, replace(job, failed=failed, retries=job.retries + 1))
            if means.complaint and self._window.storm:  # not a stray one: everybody waits
                self._hold_until = max(self._hold_until, now + (failure.retry_after or self._limits.retry_seconds))
        return Outcome(
            attempt=number,
            state=state,
            failure=failure.kind,
            status=failure.status,
            cost=cost,
            wasted=cost,
        )

    def _give_up(self, now: float, what: _Lost, *, final: bool) -> None:
        job, number, failure = what
        for following in self._work.gave_up(job, number, f"{failure.kind}: {failure.detail}", final=final):
            self._retry(now, following)

    def _despair(self, now: float) -> None:
        """Not one answer so far: it is the recipe or the server, or, where nothing else is left, the prompts."""
        if self._given_up >= _GIVEN_UP and self._last_loss:
            self._end(lost(self._last_loss))
        elif self._refused and self._idle:
            with self._requests.transaction():
                final = self._requests.totals().get("read attempts", 0) > 0  # the next change of the wire asks again
                while self._refused:
                    self._give_up(now, self._refused.pop(), final=final)
            self._wake.set()

    # what is sent next

    def _choose(self, now: float) -> list[tuple[Job, int]]:
        chosen: list[tuple[Job, int]] = []
        room = self._room()
        while len(chosen) < room and self._may_send(now):
            job = self._next(now)
            if job is None:
                break
            worst = 0 if self._budget.price == FREE else self._budget.price.worst(job.ask)
            if not self._budget.reserve(worst):
                self._put_back = job
                if not self._flying and not chosen:
                    self._end(self._budget.reached(worst))
                break
            self._requests_left.take(1)
            self._tokens_left.take(self._guess(job.ask))
            chosen.append((job, worst))
        return chosen

    def _room(self) -> int:
        """Requests that may be sent now. Under a budget the first goes alone: it shows whether the server keeps to
        max_tokens."""
        if self._why_stop:
            return 0
        width = self._window.size if self._successes or self._budget.cap is None else 1
        return min(_AT_ONCE, width - len(self._flying))

    def _may_send(self, now: float) -> bool:
        if now < self._hold_until:
            return False
        wait = max(self._requests_left.wait(now), self._tokens_left.wait(now))
        if wait:
            asyncio.get_running_loop().call_later(wait, self._wake.set)
        return not wait

    def _next(self, now: float) -> Job | None:
        if self._put_back:
            job, self._put_back = self._put_back, None
            return job
        if self._retries and self._retries[0][0] <= now:
            return heapq.heappop(self._retries)[2]
        return self._work.next() if self._there or not self._retries else None  # first, see whether anybody is there

    def _guess(self, ask: Ask) -> float:
        """Tokens that a request will take from the allowance, before its usage is known."""
        if self._limits.tokens_per_minute is None:
            return 0.0
        mean = self._completion_tokens / self._successes if self._successes else ask.count * ask.max_tokens
        return prompt_bound(ask) / 4 + mean

    def _retry(self, at: float, job: Job) -> None:
        heapq.heappush(self._retries, (at, next(self._order), job))

    # looking around, and stopping

    def _look_around(self, now: float) -> None:
        silent = now - (self._failing_since or now)
        if silent > self._limits.patience:
            worst = max(self._failures, key=self._failures.__getitem__)
            self._end(TeacherError(f"no answer for {silent:.0f} s, most often: {worst}", way_out=AGAIN))
        if now - self._last_pulse >= 0.25:
            self._last_pulse = now
            self._pulse(self._state(now))

    def _state(self, now: float) -> Pulse:
        return Pulse(
            in_flight=len(self._flying),
            window=self._window.size,
            waiting=len(self._retries),
            requests=self._successes,
            completion_tokens=self._completion_tokens,
            seconds=now - self._began,
            spent=self._budget.spent,
            failures=self._failures,
        )

    def _end(self, why: Exception) -> None:
        """The first reason counts; an error that is our bug overrides a polite one."""
        if self._why_stop is None or not isinstance(why, PotstillError):
            self._why_stop = why
        self._wake.set()
        asyncio.get_running_loop().call_later(_DRAIN, self._abandon)

    def _abandon(self) -> None:
        self._abandoned = True
        self._wake.set()

    async def _land(self) -> None:
        """Whatever ended the loop: no task is left behind, and what came home is kept."""
        tasks = [task for task, _ in self._flying.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._keep(self._heard)
        self._requests.outcome_unknown()


def _intent(job: Job, worst: int) -> Intent:
    ask = job.ask
    return Intent(question=job.question, sample=job.sample, samples=ask.count, max_tokens=ask.max_tokens, worst=worst)
