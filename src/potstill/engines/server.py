"""A teacher behind HTTP, asked in whichever form."""

from __future__ import annotations

import email.utils
import json
import time

import aiohttp

from potstill.engines.chat import Form
from potstill.engines.http import Connection
from potstill.engines.sampler import Ask, Failure, FailureKind, Reading
from potstill.recipe.teacher import Server

_KINDS: dict[int, FailureKind] = {
    **dict.fromkeys((400, 409, 413, 415, 422, 451), "refused"),
    **dict.fromkeys((401, 402, 403), "not allowed"),
    **dict.fromkeys((404, 405, 410, 421), "wrong address"),
    **dict.fromkeys((503, 529), "overloaded"),
    **dict.fromkeys((502, 504, 520, 522, 524), "gateway"),
    **dict.fromkeys((408, 425), "server error"),
    429: "rate limited",
}
_USED_UP = ("insufficient_quota", "billing_hard_limit_reached")


class ServerSampler(Connection):
    """One `ask` is one POST."""

    def __init__(self, server: Server, form: Form) -> None:
        super().__init__(server, limit=server.max_reply_bytes, form=server.form)
        self._form, self._url = form, server.url + form.path
        version = {"anthropic-version": "2023-06-01"} if server.form == "anthropic" else {}
        self._headers |= {"Content-Type": "application/json", **version}

    async def ask(self, ask: Ask) -> bytes:
        body = json.dumps(self._form.body(ask), ensure_ascii=False).encode()
        response, said = await self.exchange("POST", self._url, data=body, headers={"Idempotency-Key": ask.identity})
        if response.status != 200:
            raise failure_of(response.status, said, retry_after=_retry_after(response))
        if "json" not in response.content_type:
            raise Failure("unreadable", f"content type {response.content_type}", status=200)
        return said

    def read(self, raw: bytes) -> Reading:
        return self._form.read(raw)


def failure_of(status: int, said: bytes, *, retry_after: float | None = None) -> Failure:
    """A reply that is no answer, by its status."""
    other: FailureKind = "server error" if status >= 500 else "wrong address" if 300 <= status < 400 else "refused"
    kind = _KINDS.get(status, other)
    code, message = _error_of(said)
    if kind == "rate limited" and code in _USED_UP:
        kind = "not allowed"
    return Failure(kind, message, status=status, retry_after=retry_after)


def _error_of(said: bytes) -> tuple[str, str]:
    """(code, message) of the error bodies in use; the message is for people."""
    try:
        error = json.loads(said)["error"]
        return str(error.get("code") or error.get("type") or ""), str(error.get("message") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", said[:200].decode(errors="replace")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds, from either header and either form; at most an hour."""
    try:
        if milliseconds := response.headers.get("retry-after-ms"):
            return min(3600.0, max(0.0, float(milliseconds) / 1000))
        said = response.headers.get("Retry-After", "")
        if said.replace(".", "", 1).isdigit():
            return min(3600.0, float(said))
        return min(3600.0, max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time()))
    except (ValueError, OverflowError):
        return None
