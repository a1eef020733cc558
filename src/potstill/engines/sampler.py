"""The seam behind which a teacher writes: a `Sampler` sends one question and returns the reply as it came.

Sending and reading are apart, so that the raw reply is in the ledger before anybody tries to understand it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from potstill.records import Finish, ToolCalls, Tools

FailureKind = Literal[
    "rate limited",  # 429: asked too fast
    "overloaded",  # 503, 529
    "server error",  # 500 and its kin
    "gateway",  # 502, 504: something between us and the server gave up; it may have been answered, and billed
    "no connection",  # nothing was sent
    "connection lost",  # after sending: it may have been answered, and billed
    "too slow",  # the deadline passed: as above
    "unreadable",  # 200, but not the JSON that was promised: as above
    "too large",  # the reply went past its bound: as above
    "no choice",  # none of the choices is in the reply, whenever it is asked
    "unable",  # the server cannot answer in the way that it is asked: every question
    "refused",  # 400, 413, 422: this question, whenever it is asked
    "not allowed",  # 401, 402, 403: every question
    "wrong address",  # 3xx, 404, 405, a forbidden address: every question
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: the whole conversation, the tools that may be called, and `count` answers of at most `max_tokens`
    each.

    `identity` is the same for every attempt at the same answers and for nothing else. `prompt`: the conversation as the
    text that the model reads, where that is sent in its place; `continuations`: what is scored after it, each in a
    prompt of its own.
    """

    messages: tuple[Mapping[str, object], ...]
    count: int
    max_tokens: int
    seed: int
    identity: str
    tools: Tools = ()
    prompt: str | None = None
    continuations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the teacher wrote, whatever the server calls its parts. `cut_off`: it did not come to its end.
    `choice_logprobs`: its distribution over the choices, where it was asked for that; `text` is then the likeliest."""

    text: str
    reasoning: str | None
    finish: Finish
    cut_off: bool
    tool_calls: ToolCalls = ()
    choice_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a reply is billed for. `completion` includes hidden reasoning, `prompt` the `cached`."""

    prompt: int
    completion: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """A reply, understood. `usage` is None where the server did not say."""

    answers: tuple[Answer, ...]
    usage: Usage | None


class Failure(Exception):
    """An attempt that brought no answer. `detail` and `way_out` are for people; nothing is decided by them. `usage`:
    what the server says that it bills all the same."""

    def __init__(
        self,
        kind: FailureKind,
        detail: str = "",
        *,
        way_out: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.kind: FailureKind = kind
        self.detail = " ".join(detail.split())[:300]
        self.way_out = way_out
        self.status = status
        self.retry_after = retry_after
        self.usage = usage
        super().__init__(f"{kind}: {self.detail}" if self.detail else kind)


class Sampler(AbstractAsyncContextManager[object], Protocol):
    """Writes answers; `ask` is called many times at once, inside `async with`."""

    async def ask(self, ask: Ask) -> bytes:
        """The reply as it came. Raises Failure."""
        ...

    def read(self, raw: bytes) -> Reading:
        """What the reply says. Raises Failure("unreadable"). Never sends anything."""
        ...
