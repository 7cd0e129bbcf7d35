"""Refuses requests to private, loopback and metadata addresses (contract.md, section 6), unless `delivery.allow_private` is set.

Without a proxy the host is resolved once, and the request connects to the addresses that were checked. A proxy resolves the
host itself, and its result is unknown here. So the host is checked against its local resolution; the proxy's rules decide the rest.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from typing import Any

import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from pipeline.codec.public_address import is_public

_LOOKUP_TIMEOUT_SECONDS = 3.0
_CACHE_SECONDS = 60.0
_UNKNOWN_CACHE_SECONDS = 600.0
"""Longer, since an unknown host rarely becomes known, and a name server that does not answer delays requests on each look-up."""
_MAX_CACHED_HOSTS = 1024


class PublicResolver(AbstractResolver):
    """Resolves hosts to public addresses only. aiohttp connects to the returned addresses and does not resolve again."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of `host`. Raises PrivateAddress if one of them is not public, OSError if there is none."""
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(entry["host"]) for entry in found):
            raise PrivateAddress(f"{host} has an address in a private network; set delivery.allow_private to allow it")
        return found

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()


class PrivateAddress(OSError):
    """The host has an address that requests must not connect to."""


class ProxiedHosts:
    """Decides whether a host is private, for requests through a proxy. Use it in one event loop. Results are cached for minutes."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._cache: dict[str, tuple[float, bool]] = {}
        """Expiry (monotonic seconds) and result by host."""

    async def is_private(self, url: httpx.URL) -> bool:
        """Return whether the host resolves to a private address here, or is unknown here and cannot be a public name."""
        host = url.raw_host.decode("ascii")
        until, private = self._cache.get(host, (0.0, False))
        if time.monotonic() < until:
            return private
        async with self._lock:  # one look-up at a time: its thread can hang
            until, private = self._cache.get(host, (0.0, False))
            if time.monotonic() >= until:
                private, seconds = await self._look_up(host)
                if len(self._cache) >= _MAX_CACHED_HOSTS:
                    self._cache.clear()
                self._cache[host] = (time.monotonic() + seconds, private)
        return private

    async def _look_up(self, host: str) -> tuple[bool, float]:
        """Return whether `host` is private, and for how many seconds to cache the result."""
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT_SECONDS):
                await PublicResolver().resolve(host, 0, socket.AF_UNSPEC)
        except PrivateAddress:
            return True, _CACHE_SECONDS
        except (OSError, TimeoutError):
            private = _cannot_be_public(host)
            return private, _CACHE_SECONDS if private else _UNKNOWN_CACHE_SECONDS
        return False, _CACHE_SECONDS


_NUMERIC_HOST = re.compile(r"(?:^|\.)(?:0x[0-9a-f]*|[0-9]+)$")
_PRIVATE_LABELS = frozenset(
    ["internal", "intranet", "private", "corp", "home", "lan", "local", "localdomain", "localhost", "arpa"]
)
"""Last labels of names that are never public: RFC 6762 (appendix G), RFC 6761, home.arpa of RFC 8375; ICANN has reserved .internal."""


def _cannot_be_public(host: str) -> bool:
    """Return whether an unresolvable host is an address in another notation, or a name of private networks."""
    host = host.lower().rstrip(".")
    _, dot, last = host.rpartition(".")
    return not dot or ":" in host or _NUMERIC_HOST.search(host) is not None or last in _PRIVATE_LABELS


def is_caused_by_private_address(error: BaseException | None) -> bool:
    """Return whether PrivateAddress is `error` or one of its causes."""
    seen: list[Any] = []
    while error is not None and error not in seen:
        if isinstance(error, PrivateAddress) or isinstance(getattr(error, "os_error", None), PrivateAddress):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
