"""A teacher behind HTTP, asked in whichever form."""

from __future__ import annotations

import email.utils
import json
import time

import aiohttp

from potstill.engines.chat import Form, renamed
from potstill.engines.errors_said import failure_of
from potstill.engines.http import Connection
from potstill.engines.sampler import Ask, Reading
from potstill.recipe.teacher import Server


class ServerSampler(Connection):
    """One `ask` is one POST."""

    def __init__(self, server: Server, form: Form) -> None:
        super().__init__(server, limit=server.max_reply_bytes, form=server.form)
        self._form, self._url, self._names = form, server.url + form.path, server.names
        version = {"anthropic-version": "2023-06-01"} if server.form == "anthropic" else {}
        self._headers |= {"Content-Type": "application/json", **version}

    async def ask(self, ask: Ask) -> bytes:
        body = json.dumps(renamed(self._form.body(ask), self._names), ensure_ascii=False).encode()
        response, said = await self.exchange("POST", self._url, data=body, headers={"Idempotency-Key": ask.identity})
        if response.status != 200:
            raise failure_of(response.status, said, retry_after=_retry_after(response))
        return said

    def read(self, raw: bytes) -> Reading:
        return self._form.read(raw)


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
