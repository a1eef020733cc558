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
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from potstill.engines.keys import Key, find_key
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


def key_for(http: Http) -> Key:
    """The key, after the address was found fit for it. Raises InputError."""
    key = find_key(http.key_env, http.key_file)
    check_address(http.url, with_key=bool(key))
    return key


def open_session(http: Http, headers: dict[str, str], *, at_once: int = 0) -> aiohttp.ClientSession:
    """A session with at most `at_once` connections (0: as many as asked for)."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=at_once, resolver=GuardedResolver()),
        timeout=aiohttp.ClientTimeout(total=http.deadline, sock_connect=min(30, http.deadline)),
        headers={"Accept-Encoding": "identity", **headers},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


@contextmanager
def named_failures(deadline: float) -> Generator[None]:
    """aiohttp's many ways to fail as the three that matter."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise Failure("no connection", type(error).__name__) from None
    except TimeoutError:
        raise Failure("too slow", f"no reply within {deadline:g} s") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise Failure("connection lost", type(error).__name__) from None


async def bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, of at most `limit` bytes. Raises Failure."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Failure("unreadable", "a compressed reply that was not asked for", status=response.status)
    chunks, size = list[bytes](), 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            response.close()
            raise Failure("too large", f"a reply above {limit:,} bytes", status=response.status)
        chunks.append(chunk)
    return b"".join(chunks)


async def replied(
    session: aiohttp.ClientSession, url: str, asked: Mapping[str, object], *, http: Http, key: Key, limit: int
) -> tuple[int, bytes]:
    """Status and body, of at most `limit` bytes, of the reply to a request that costs nothing twice: what may pass is
    tried again. Raises Failure where the last attempt brought no reply, or none but "busy"."""
    failure = Failure("no connection", "no attempt was made")
    for attempt in range(http.attempts):
        if attempt:
            await asyncio.sleep(min(60.0, http.retry_seconds * 2 ** (attempt - 1)))
        try:
            with named_failures(http.deadline):
                async with session.post(url, json=asked, allow_redirects=False) as response:
                    said = key.struck_out(await bounded(response, limit))
        except Failure as found:
            failure = found
            continue
        if response.status != 429 and response.status < 500:
            return response.status, said
        kind = "rate limited" if response.status == 429 else "server error"
        failure = Failure(kind, f"status {response.status}: {said[:300].decode(errors='replace')}")
    raise failure
