"""Checks in processes that can be killed: whatever an answer holds, a check that hangs, dies or eats memory costs its
own verdict ("undecided") and not the run.

Samples go out in chunks (one at a time where a check may take seconds) and come back in order, a few chunks ahead of
who reads them. Where a chunk does not come back in time, its checks are asked again one by one, each with its own
limit, so that the culprit is found.
"""

from __future__ import annotations

import resource
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context

from pebble import ProcessExpired, ProcessPool

from potstill.recipe import checks as ask
from potstill.records import Finding, Prompt, Sample
from potstill.verify import check as checking
from potstill.verify import programs, text

Asked = tuple[Prompt, Sample]
Checked = tuple[Prompt, Sample, tuple[Finding, ...]]

_CHUNK = 256
_CHUNK_SECONDS = 10.0
_MEMORY_BYTES = 4 << 30


Look = Callable[[Iterable[Asked]], Iterator[Checked]]
"""What every check says of every sample, in order."""


def checked(asked: Iterable[Asked], checks: Sequence[ask.Check], *, processes: int) -> Iterator[Checked]:
    """What every check says of every sample, in order. Left out are majorities, which need a prompt's other
    samples, and what is asked late."""
    if not checks:
        yield from ((prompt, sample, ()) for prompt, sample in asked)
        return
    with checking_workers(checks, processes=processes) as look:
        yield from look(asked)


@contextmanager
def checking_workers(checks: Sequence[ask.Check], *, processes: int) -> Generator[Look]:
    """`checked` for many small lots: the processes live until the end."""
    alone = tuple(check for check in checks if isinstance(check, ask.Alone))
    slow = [checking.seconds(check) for check in alone if checking.slow(check)]
    size, patience = (1, sum(slow)) if slow else (_CHUNK, _CHUNK_SECONDS)
    context = get_context("forkserver")
    away: deque[tuple[list[Asked], Future[list[list[Finding]]]]] = deque()
    with ProcessPool(processes, initializer=_settle_in, initargs=[alone], context=context) as pool:

        def look(asked: Iterable[Asked]) -> Iterator[Checked]:
            source = iter(asked)
            while True:
                while len(away) < 2 * processes + 2 and (chunk := list(islice(source, size))):
                    away.append((chunk, pool.schedule(_look_at, args=[chunk, alone], timeout=patience)))
                if not away:
                    return
                chunk, answer = away.popleft()
                for (prompt, sample), findings in zip(chunk, _findings(pool, chunk, answer, alone), strict=True):
                    yield prompt, sample, tuple(findings)

        try:
            yield look
        finally:
            if away:  # the reader left early
                pool.stop()


def _findings(
    pool: ProcessPool,
    chunk: Sequence[Asked],
    answer: Future[list[list[Finding]]],
    checks: Sequence[ask.Alone],
) -> list[list[Finding]]:
    try:
        return answer.result()
    except (TimeoutError, ProcessExpired, MemoryError) as error:
        if len(chunk) == len(checks) == 1:
            return [[_unanswered(checks[0], error)]]

        def alone(one: Asked, check: ask.Alone) -> Finding:
            again = pool.schedule(_look_at, args=[[one], (check,)], timeout=checking.seconds(check))
            return _findings(pool, [one], again, [check])[0][0]

        return [[alone(one, check) for check in checks] for one in chunk]


def _unanswered(check: ask.Alone, error: Exception) -> Finding:
    if isinstance(error, TimeoutError):
        said = text.undecided("took too long", f"longer than {checking.seconds(check):g} s")
    else:
        said = text.undecided("the check's process died", type(error).__name__)
    return replace(said, check=checking.name_of(check))


def _look_at(chunk: Sequence[Asked], checks: Sequence[ask.Alone]) -> list[list[Finding]]:
    return [[checking.look(check, prompt, sample) for check in checks] for prompt, sample in chunk]


def _settle_in(checks: Sequence[ask.Alone]) -> None:
    """In a worker: Ctrl-C is the parent's to answer, memory has an end, and no check pays for its imports."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    for check in checks:
        programs.load(check)
