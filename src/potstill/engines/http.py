"""HTTP as every request to a teacher is made: no redirects, no cookies, no proxies, no compression, bounded replies.

No request goes to a link-local address, where clouds keep their credentials. That is checked on every connect, after
the name was looked up, so that a name cannot change its mind in between.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from potstill.engines.keys import find_key
from potstill.engines.sampler import Failure
from potstill.errors import InputError
from potstill.recipe.teacher import Http

_METADATA = {ipaddress.ip_address(a) for a in ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")}


def forbidden(address: str) -> bool:
    """Link-local, multicast, unspecified and cloud metadata addresses; IPv4 inside IPv6 counts as what it is."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA


def check_address(url: str, *, with_key: bool) -> None:
    """Raises InputError for an address that is never asked, or that would see the key in clear."""
    host = urlsplit(url).hostname or ""
    literal = _literal(host)
    if literal and forbidden(literal):
        raise InputError(
            f"teacher.engine.url: '{host}' is an address that Potstill never asks (link-local or metadata)",
            way_out="give the address of the model server",
        )
    here = host == "localhost" or (literal is not None and ipaddress.ip_address(literal).is_loopback)
    if with_key and url.startswith("http://") and not here:
        raise InputError(
            f"teacher.engine.url: the key would go to '{host}' unencrypted", way_out="use https, or give no key"
        )


class GuardedResolver(AbstractResolver):
    """Looks names up as usual and leaves out what is forbidden."""

    def __init__(self) -> None:
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        allowed = [entry for entry in found if not forbidden(entry["host"])]
        if not allowed:
            raise Failure("wrong address", f"'{host}' leads to an address that Potstill never asks")
        return allowed

    async def close(self) -> None:
        await self._inner.close()


def _literal(host: str) -> str | None:
    try:
        ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return None
    return host.split("%")[0]


class Connection:
    """A server and the key for it; requests go out inside `async with`. `limit`: bytes of a reply at most; `at_once`:
    connections at most (0: as many as asked for). Raises InputError where the address is not fit for the key."""

    def __init__(self, http: Http, *, limit: int, form: str = "openai", at_once: int = 0) -> None:
        self._http, self._limit, self._at_once, self._key_form = http, limit, at_once, form
        self._key = find_key(http)
        check_address(http.url, with_key=bool(self._key))
        self._headers = {"Accept-Encoding": "identity"}

    async def __aenter__(self) -> Self:
        deadline = self._http.deadline
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._at_once, resolver=GuardedResolver()),
            timeout=aiohttp.ClientTimeout(total=deadline, sock_connect=min(30, deadline)),
            headers={**self._headers, **self._key.headers(self._key_form)},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def exchange(self, method: str, url: str, **what: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        """One request: its reply and the reply's body, without the key. Raises Failure."""
        with _named_failures(self._http):
            query = self._key.query
            async with self._session.request(method, url, params=query, allow_redirects=False, **what) as response:
                return response, self._key.struck_out(await _bounded(response, self._limit))

    async def replied(self, url: str, asked: Mapping[str, object], *, attempts: int) -> tuple[int, bytes]:
        """Status and body of the reply to a request that costs nothing twice: what may pass is tried again. Raises
        Failure where the last attempt brought no reply, or none but "busy"."""
        failure = Failure("no connection", "no attempt was made")
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(min(60.0, self._http.retry_seconds * 2 ** (attempt - 1)))
            try:
                response, said = await self.exchange("POST", url, json=asked)
            except Failure as found:
                failure = found
                continue
            if response.status != 429 and response.status < 500:
                return response.status, said
            kind = "rate limited" if response.status == 429 else "server error"
            failure = Failure(kind, f"status {response.status}: {said[:300].decode(errors='replace')}")
        raise failure


@contextmanager
def _named_failures(http: Http) -> Generator[None]:
    """aiohttp's many ways to fail as the three that matter."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        refused = isinstance(getattr(error, "os_error", None), ConnectionRefusedError)
        why = "the connection was refused" if refused else str(error) or type(error).__name__
        start = f"start the model's server there (such as: vllm serve MODEL --port {urlsplit(http.url).port or 80})"
        start = start if http.url.startswith("http:") else "see that it runs"
        way_out = f"{start}, or correct the engine's 'url'"
        raise Failure("no connection", f"no server answers at {http.url}: {why}", way_out=way_out) from None
    except TimeoutError:
        raise Failure("too slow", f"no reply within {http.deadline:g} s") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise Failure("connection lost", type(error).__name__) from None


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, of at most `limit` bytes. Raises Failure."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        if response.status != 200:  # its status says enough
            return b"(compressed)"
        raise Failure("unreadable", "a compressed reply that was not asked for", status=response.status)
    chunks, size = list[bytes](), 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            response.close()
            raise Failure("too large", f"a reply above {limit:,} bytes", status=response.status)
        chunks.append(chunk)
    return b"".join(chunks)
