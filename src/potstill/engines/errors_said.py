"""An error as a server says it: by the status of its reply, or inside a reply of status 200, by its code and type."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from potstill.engines.sampler import Failure, FailureKind, Usage

_KINDS: dict[int, FailureKind] = {
    **dict.fromkeys((400, 409, 413, 415, 422, 451), "refused"),
    **dict.fromkeys((401, 402, 403), "not allowed"),
    **dict.fromkeys((404, 405, 410, 421), "wrong address"),
    **dict.fromkeys((503, 529), "overloaded"),
    **dict.fromkeys((502, 504, 520, 522, 524), "gateway"),
    **dict.fromkeys((408, 425), "server error"),
    429: "rate limited",
}
_USED_UP = re.compile("insufficient(quota|balance|credit|fund)|billing|credit")
_WORDS: dict[FailureKind, re.Pattern[str]] = {
    "rate limited": re.compile("ratelimit|toomanyrequests|exhausted|throttl"),
    "not allowed": re.compile("authenti|permission|unauthori|forbidden|apikey"),
    "overloaded": re.compile("overload|unavailable|capacity"),
    "wrong address": re.compile("notfound"),
    "refused": re.compile("invalid|badrequest|contextlength|contentfilter|unsupported|unprocessable"),
}
"""What an error's code or type holds, without what is no letter: the names of OpenAI, Anthropic, Google and vLLM."""


def failure_of(status: int, said: bytes, *, retry_after: float | None = None) -> Failure:
    """A reply that is no answer, by its status."""
    other: FailureKind = "server error" if status >= 500 else "wrong address" if 300 <= status < 400 else "refused"
    kind = _KINDS.get(status, other)
    try:
        body: object = json.loads(said)
    except (ValueError, RecursionError):
        body = said[:200].decode(errors="replace")
    words, message = _parts((error_in(body) or body) if isinstance(body, dict) else body)
    if kind == "rate limited" and _USED_UP.search(words):
        kind = "not allowed"
    return Failure(kind, message, status=status, retry_after=retry_after)


def failure_inside(error: object, *, usage: Usage | None = None) -> Failure:
    """An error in a reply of status 200: not billed, unless the reply has a `usage`."""
    words, message = _parts(error)
    code = cast("Mapping[str, Any]", error).get("code") if isinstance(error, Mapping) else None
    status = int(code) if isinstance(code, int | str) and re.fullmatch(r"[45]\d\d", str(code)) else None
    kind = failure_of(status, json.dumps({"error": error}).encode()).kind if status else _by_words(words)
    if kind == "gateway":  # the server itself says that it failed
        kind = "server error"
    return Failure(kind, f"{message} (said in a reply of status 200)", status=200, usage=usage)


def error_in(body: Mapping[str, Any]) -> object:
    """The error that an object is or holds, or None."""
    return body.get("error") or (body if body.get("object") == "error" else None)


def _by_words(words: str) -> FailureKind:
    if _USED_UP.search(words):
        return "not allowed"
    for kind, pattern in _WORDS.items():
        if pattern.search(words):
            return kind
    return "server error"


def _parts(error: object) -> tuple[str, str]:
    """(the letters of its code and type, its message); the message is for people."""
    if not isinstance(error, Mapping):
        return "", error if isinstance(error, str) else json.dumps(error)
    entry = cast("Mapping[str, Any]", error)
    words = "".join(str(entry.get(name) or "") for name in ("code", "type", "status"))
    message = next((entry[name] for name in ("message", "msg", "detail") if entry.get(name)), entry)
    return re.sub("[^a-z]", "", words.lower()), message if isinstance(message, str) else json.dumps(message)
