"""What a failed attempt means: for its row, the window and the money. By kind, never by what a message says."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from potstill.dispatch.money import Price
from potstill.engines.sampler import Failure, FailureKind
from potstill.errors import TeacherError

AGAIN = "fix it, then the same command goes on from here"
ASKED_ANEW = (
    "change how it is asked (teacher.engine.limit_field or names; generate.parameters: {NAME: null} leaves one out), "
    "then the same command asks again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """`counts`: against the attempts that one answer has; what was merely turned away does not.

    `billed`: the server may have charged for it. `complaint`: the window should shrink.
    """

    then: Literal["retry", "give up", "stop"] = "retry"
    counts: bool = False
    billed: bool = False
    complaint: bool = False


MEANINGS: dict[FailureKind, Meaning] = {
    "rate limited": Meaning(complaint=True),
    "overloaded": Meaning(complaint=True),
    "no connection": Meaning(),
    "server error": Meaning(counts=True),
    "gateway": Meaning(counts=True, billed=True),
    "connection lost": Meaning(counts=True, billed=True),
    "too slow": Meaning(counts=True, billed=True),
    "unreadable": Meaning(counts=True, billed=True),
    "too large": Meaning(counts=True, billed=True),
    "no choice": Meaning(then="give up", billed=True),
    "unable": Meaning(then="stop", billed=True),
    "refused": Meaning(then="give up"),
    "not allowed": Meaning(then="stop"),
    "wrong address": Meaning(then="stop"),
}


def paid_for(failure: Failure, worst: int, price: Price) -> tuple[Literal["free", "maybe"], int]:
    """Whether a failed attempt may have been billed, and picodollars: what the server says, else all that it could."""
    if failure.usage is not None:
        return "maybe", price.of(failure.usage)
    return ("maybe", worst) if MEANINGS[failure.kind].billed else ("free", 0)


def lost(failure: Failure) -> TeacherError:
    """Why nothing more is asked."""
    how = f"HTTP {failure.status}, {failure.kind}" if failure.status else failure.kind
    did = "refused the request" if MEANINGS[failure.kind].then != "retry" else "gives no answer"
    problem = f"the server {did} ({how}): {failure.detail or 'no reason'}"
    if failure.kind == "no connection":
        problem = failure.detail
    refused = failure.kind == "refused" and failure.status is not None
    return TeacherError(problem, way_out=failure.way_out or (ASKED_ANEW if refused else AGAIN))


def delay(first: float, retries: int, retry_after: float | None, draw: random.Random) -> float:
    """Seconds before the next attempt: doubling up to a minute, spread by half, and never before the server said."""
    backed_off = min(60.0, first * 2.0 ** min(retries, 30)) * (0.5 + draw.random())
    return max(backed_off, retry_after or 0.0)
