"""No request reaches a private, loopback or metadata address (contract.md, section 6), unless the connection allows it.

Without a proxy the name is resolved once, and the connection goes to the addresses that were checked. A proxy resolves the name
itself: what it finds nobody sees here, so the name is checked against what it means here, and the rest is the proxy's own rules.
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

_LOOK_UP_SECONDS = 3.0
_REMEMBERED_SECONDS = 60.0
_UNKNOWN_SECONDS = 600.0
"""A name that is unknown here stays so, as a rule, and a name server that does not answer holds up requests while it is asked."""
_NAMES_MOST = 1024


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
