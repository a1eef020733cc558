"""Which addresses a request may go to: never link-local ones, where clouds keep their credentials.

Checked on every connect, after the name was looked up, so that a name cannot change its mind in between.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from potstill.engines.sampler import Failure
from potstill.errors import InputError

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
