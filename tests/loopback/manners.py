"""Manners of servers, each a function of what was asked and of how often it was asked before, and what they bill.

The loopback teacher serves them all, under /manners/NAME/...; the name is free behind the first blank.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Tokens = tuple[int, int]
"""Read and written."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A reply. `told` tokens are billed and stand in its usage, `untold` ones are billed without a word."""

    body: object
    status: int = 200
    kind: str | None = "application/json"
    extra: str = ""
    told: Tokens = (0, 0)
    untold: Tokens = (0, 0)
    how: Literal["whole", "drip", "hang", "reset"] = "whole"


Manner = Callable[[dict[str, Any], dict[str, str], int], Said]
"""What was asked, in which headers (`path` among them), and how often before."""


def ok(asked: dict[str, Any], *, text: str = "fine", finish: str = "stop", usage: object = ..., **message: Any) -> Said:
    """An answer to each that was asked for, of ten tokens read and three written."""
    count = asked.get("n", 1)
    said = {"role": "assistant", "content": text, **message}
    choices = [{"index": i, "message": said, "finish_reason": finish} for i in range(count)]
    told = {"prompt_tokens": 10, "completion_tokens": 3 * count, "total_tokens": 10 + 3 * count}
    body = {"choices": choices, **({"usage": told if usage is ... else usage} if usage is not None else {})}
    return Said(body=body, told=(10, 3 * count)) if usage is ... else Said(body=body, untold=(10, 3 * count))


def claude(text: str) -> Said:
    usage = {"input_tokens": 10, "output_tokens": 3}
    body = {"type": "message", "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "usage": usage}
    return Said(body=body, told=(10, 3))


def error(status: int, message: str, **more: Any) -> Said:
    return Said(status=status, body={"error": {"message": message, **more}})


def inside(message: str, **more: Any) -> Said:
    return Said(body={"error": {"message": message, **more}})


def always(said: Said) -> Manner:
    return lambda asked, headers, before: said


def once(said: Said, times: int = 1) -> Manner:
    return lambda asked, headers, before: said if before < times else ok(asked)


def for_one(said: Said) -> Manner:
    """One of the prompts is treated so."""
    return lambda asked, headers, before: said if "film 2" in str(asked["messages"]) else ok(asked)


def unless(right: Callable[[dict[str, Any], dict[str, str]], bool], said: Said) -> Manner:
    return lambda asked, headers, before: ok(asked) if right(asked, headers) else said


def broken(*, told: bool) -> Said:
    """An upstream that dies in the middle of an answer."""
    gone = {"code": 502, "message": "upstream idle timeout"}
    choice = {"index": 0, "finish_reason": "error", "error": gone, "message": {"content": "The answer is"}}
    usage = {"usage": {"prompt_tokens": 10, "completion_tokens": 2}} if told else {}
    return Said(body={"choices": [choice], **usage}, told=(10, 2) if told else (0, 0))


def one_breaks(asked: dict[str, Any], headers: dict[str, str], before: int) -> Said:
    """The first of several answers ends in an error; all tokens are billed."""
    said = ok(asked)
    assert isinstance(said.body, dict)
    if asked.get("n", 1) > 1:
        said.body["choices"][0] |= {"finish_reason": "abort", "message": {"content": "The an"}}
    return said


def ignores_n(asked: dict[str, Any], headers: dict[str, str], before: int) -> Said:
    return ok({**asked, "n": 1})


def thinks_long(asked: dict[str, Any], headers: dict[str, str], before: int) -> Said:
    short = asked["max_tokens"] < 100
    return ok(asked, text="", finish="length", reasoning="well") if short else ok(asked, reasoning="well")


def anthropic(asked: dict[str, Any], headers: dict[str, str], before: int) -> Said:
    both = "temperature" in asked and "top_p" in asked
    return error(400, "`temperature` and `top_p` cannot both be given") if both else claude("fine")


def busy_anthropic(asked: dict[str, Any], headers: dict[str, str], before: int) -> Said:
    busy = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    return Said(body=busy) if before < 2 else claude("fine")


def raw(body: bytes, kind: str | None = "application/json", **more: Any) -> Said:
    return Said(body=body, kind=kind, **more)


def as_is(before_it: bytes, kind: str | None) -> Manner:
    """A right answer, in another wrapping."""

    def manner(asked: dict[str, Any], headers: dict[str, str], before: int) -> Said:
        said = ok(asked)
        return Said(body=before_it + json.dumps(said.body).encode(), kind=kind, told=said.told)

    return manner


EVENTS = b'data: {"choices": [{"index": 0, "delta": {"content": "o"}}]}\n\ndata: [DONE]\n\n'
CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
FASTAPI = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}

MANNERS: dict[str, Manner] = {
    "polite": lambda asked, headers, before: ok(asked),
    "too fast": once(Said(status=429, body={"error": {"message": "slow down"}}, extra="Retry-After: 0.01\r\n"), 3),
    "milliseconds": once(Said(status=429, body={"error": "slower"}, extra="retry-after-ms: 10\r\n"), 2),
    "quota": always(error(429, "You exceeded your current quota", code="insufficient_quota")),
    "balance": always(error(402, "Insufficient Balance")),
    "wrong key": always(error(401, "Incorrect API key provided", code="invalid_api_key")),
    "no access": always(error(403, "Your country is not supported")),
    "no model": always(error(404, "The model `loopback` does not exist", code="model_not_found")),
    "moved": always(Said(status=307, body={}, extra="Location: http://127.0.0.1:9/\r\n")),
    "too long": for_one(error(400, "maximum context length is 2048 tokens", code="context_length_exceeded")),
    "filter": for_one(error(400, "The response was filtered", code="content_filter")),
    "too large a body": for_one(Said(status=413, body=b"<h1>Request Entity Too Large</h1>", kind="text/html")),
    "strict fields": unless(lambda asked, _: "seed" not in asked, Said(status=422, body=FASTAPI)),
    "other limit": unless(
        lambda asked, _: "max_tokens" not in asked, error(400, "use 'max_completion_tokens' instead")
    ),
    "no sampling": unless(lambda asked, _: not {"temperature", "top_p"} & asked.keys(), error(400, "not supported")),
    "other name": unless(lambda asked, _: "random_seed" in asked, error(422, "random_seed is missing")),
    "one answer": unless(lambda asked, _: asked.get("n", 1) == 1, error(400, "n must be 1")),
    "deployment": unless(
        lambda _, headers: "api-version=2024-10-21" in headers["path"] and headers.get("api-key") == "k" * 9,
        error(404, "Resource not found"),
    ),
    "no tools": unless(lambda asked, _: "tools" not in asked, error(400, "tools are not supported by this model")),
    "timeout": once(error(408, "too slow a request")),
    "broken": once(error(500, "CUDA error: an illegal memory access")),
    "dead": always(error(500, "Internal Server Error")),
    "gateway": once(Said(status=502, body=b"Bad Gateway", kind="text/plain", untold=(10, 3))),
    "loading": once(error(503, "Loading model"), 2),
    "overloaded": once(error(529, "Overloaded", type="overloaded_error")),
    "compressed error": once(Said(status=503, body=b"\x1f\x8b\x08", extra="Content-Encoding: gzip\r\n")),
    "429 inside": once(inside("Rate limit exceeded upstream", code=429), 5),
    "502 inside": once(inside("Provider returned error", code=502)),
    "quota inside": always(inside("Your credits are used up", code="insufficient_quota")),
    "400 inside": for_one(inside("maximum context length is 2048 tokens", code="400")),
    "words inside": once(Said(body={"error": "something went wrong"})),
    "object error": always(Said(body={"object": "error", "message": "no such model", "type": "NotFoundError"})),
    "busy inside": busy_anthropic,
    "breaks off": once(broken(told=False)),
    "breaks off, billed": once(broken(told=True)),
    "one breaks off": one_breaks,
    "plain text": as_is(b"", "text/plain; charset=utf-8"),
    "no type": as_is(b"\n \n", None),
    "byte order mark": as_is(b"\xef\xbb\xbf", "application/json"),
    "events": always(raw(EVENTS, "text/event-stream", untold=(10, 3))),
    "log-in page": always(raw(b"<html>Log in to the Wi-Fi</html>", "text/html")),
    "half a reply": once(raw(b'{"choices": [{"mess', untold=(10, 3))),
    "no choices": once(raw(b'{"choices": []}', untold=(10, 0))),
    "no usage": lambda asked, headers, before: ok(asked, usage=None),
    "empty usage": lambda asked, headers, before: ok(asked, usage={}),
    "usage in floats": lambda asked, headers, before: Said(
        body={**ok(asked).body, "usage": {"prompt_tokens": 10.0, "completion_tokens": 3.0 * asked.get("n", 1)}},  # type: ignore[dict-item]
        told=(10, 3 * asked.get("n", 1)),
    ),
    "hangs": once(Said(body=b"", how="hang", untold=(10, 3))),
    "drips": once(Said(body=b'{"choices": [', how="drip", untold=(10, 3))),
    "resets": once(Said(body=b"", how="reset", untold=(10, 3))),
    "endless": once(raw(b" " * 60_000, untold=(10, 3))),
    "ignores n": ignores_n,
    "filters": lambda asked, _, before: ok(asked, finish="content_filter" if "film 2" in str(asked) else "stop"),
    "thinks": lambda asked, headers, before: ok(asked, text="<think>well</think>fine"),
    "thinks long": thinks_long,
    "cuts": lambda asked, _, before: ok(asked, finish="length" if "film 2" in str(asked) else "stop"),
    "calls": lambda asked, headers, before: ok(asked, text="", finish="tool_calls", tool_calls=CALLS),
    "both": anthropic,
}
