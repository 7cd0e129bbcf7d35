"""No request reaches a private, loopback or metadata address (contract.md, section 6), unless the connection allows it.

Without a proxy the name is resolved once, and the connection goes to the addresses that were checked. A proxy resolves the name
itself: what it finds nobody sees here, so the name is checked against what it means here, and the rest is the proxy's own rules.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from typing import Any

import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from pipeline.codec.ip_address import parse_ip

_LOOK_UP_SECONDS = 3.0
_REMEMBERED_SECONDS = 60.0
_UNKNOWN_SECONDS = 600.0
"""A name that is unknown here stays so, as a rule, and a name server that does not answer holds up requests while it is asked."""
_NAMES_MOST = 1024


def is_public(address: str) -> bool:
    """May a request go there? Private, loopback, link-local (metadata services) and reserved addresses may not.

    Nor may IPv6 addresses that only wrap such an address: mapped, compatible, 6to4, NAT64. No Teredo address may. Raises ValueError when
    it is no address.
    """
    parsed = parse_ip(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        wrapped = _wrapped(parsed)
        if wrapped is not None:
            return is_public(str(wrapped))
    if any(parsed in network for network in _REFUSED if network.version == parsed.version):
        return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def _wrapped(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or address in _COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, 2.5.5.1; the unspecified and the loopback address, too
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's machine agent and DNS
        "192.0.0.0/24",  # IETF protocol assignments (RFC 6890); 192.0.0.192 is the metadata service of Oracle Cloud
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "64:ff9b:1::/48",  # local NAT64 (RFC 8215)
        "2001::/23",  # IETF protocol assignments (RFC 2928), Teredo (RFC 4380) among them
        "3fff::/20",  # documentation (RFC 9637)
        "fec0::/10",  # site-local (RFC 3879)
    )
)
"""Never a destination; `ipaddress` counts them as global, or did in some version of Python."""


class PublicResolver(AbstractResolver):
    """Resolves once; the connection goes to the addresses that were checked."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of `host`. Raises PrivateAddress when one of them is not public, OSError when there is none."""
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(entry["host"]) for entry in found):
            raise PrivateAddress(f"{host} is an address of a private network; set delivery.allow_private to allow it")
        return found

    async def close(self) -> None:
        """See AbstractResolver."""
        await self._resolver.close()


class PrivateAddress(OSError):
    """The name stands for an address that no request may reach."""


class ProxiedNames:
    """Says which names a proxy may be asked for. Belongs to one event loop; remembers a name for minutes."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._known: dict[str, tuple[float, bool]] = {}

    async def is_private(self, url: httpx.URL) -> bool:
        """Whether the host means a private address here. A name that is unknown here is private where it cannot be public."""
        host = url.raw_host.decode("ascii")
        until, private = self._known.get(host, (0.0, False))
        if time.monotonic() < until:
            return private
        async with self._lock:  # one look-up at a time, whose thread may hang
            until, private = self._known.get(host, (0.0, False))
            if time.monotonic() >= until:
                private, seconds = await self._look_up(host)
                if len(self._known) >= _NAMES_MOST:
                    self._known.clear()
                self._known[host] = (time.monotonic() + seconds, private)
        return private

    async def _look_up(self, host: str) -> tuple[bool, float]:
        """Whether it is private, and for how long to remember that."""
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS):
                await PublicResolver().resolve(host, 0, socket.AF_UNSPEC)
        except PrivateAddress:
            return True, _REMEMBERED_SECONDS
        except (OSError, TimeoutError):
            private = _cannot_be_public(host)
            return private, _REMEMBERED_SECONDS if private else _UNKNOWN_SECONDS
        return False, _REMEMBERED_SECONDS


_NUMBER = re.compile(r"(?:^|\.)(?:0x[0-9a-f]*|[0-9]+)$")
_PRIVATE_NAMES = frozenset(
    ["internal", "intranet", "private", "corp", "home", "lan", "local", "localdomain", "localhost", "arpa"]
)
"""Last parts of names that are never public: RFC 6762 (appendix G), RFC 6761, home.arpa of RFC 8375; ICANN has reserved .internal."""


def _cannot_be_public(host: str) -> bool:
    """Whether a host that is unknown here is an address in another spelling, or a name of private networks."""
    host = host.lower().rstrip(".")
    _, dot, last = host.rpartition(".")
    return not dot or ":" in host or _NUMBER.search(host) is not None or last in _PRIVATE_NAMES


def is_refused(error: BaseException | None) -> bool:
    """Whether `error` comes from a PrivateAddress."""
    seen: list[Any] = []
    while error is not None and error not in seen:
        if isinstance(error, PrivateAddress) or isinstance(getattr(error, "os_error", None), PrivateAddress):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
