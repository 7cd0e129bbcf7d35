"""The open HTTP connections of one process, limited in total and per client address, so that no client can use them all up.

At a limit a new connection replaces the longest idle one: of the same address at the limit per address, else of all. Connections
without a first request are closed first, because their clients lose nothing. If none is idle, the new connection is closed.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from typing import Protocol

from pipeline.codec.ip_address import parse_ip
from pipeline.telemetry import CONNECTIONS_CLOSED

MAX_CONNECTIONS = 10_000
MAX_PER_ADDRESS = 1_000
_CANDIDATES = 256
"""Idle connections collected by one scan of all connections, which takes some milliseconds."""
_LOOK_AGAIN_SECONDS = 0.1
"""Pause after a scan that found no idle connection."""
_NETWORK_BYTES = 8
"""Leading bytes of an IPv6 address that count as one client: a client usually has a whole /64."""


class Connection(Protocol):
    """The interface of an open HTTP connection."""

    @property
    def busy(self) -> bool:
        """Whether a request is being read or has no answer yet."""

    @property
    def idle_since(self) -> float | None:
        """When it became idle, by time.monotonic(); None while it is busy. Before the first request it is an earlier time."""

    def sweep(self, now: float) -> None:
        """Close the connection if its deadline has passed."""

    def drain(self) -> None:
        """Answer the requests in flight, then close."""

    def abort(self) -> None:
        """Close now, even if the client does not read its answers."""


class _Group:
    """A set of connections, and the longest idle ones of the last scan."""

    __slots__ = ("_candidates", "_look_at", "members")

    def __init__(self) -> None:
        self.members: set[Connection] = set()
        self._candidates: deque[tuple[float, Connection]] = deque()
        self._look_at = 0.0

    def longest_idle(self, clock: Callable[[], float]) -> Connection | None:
        """Return the longest idle connection, each only once; None if none is idle."""
        if not self._candidates and clock() >= self._look_at:
            idle = ((since, id(member), member) for member in self.members if (since := member.idle_since) is not None)
            self._candidates.extend((since, member) for since, _, member in heapq.nsmallest(_CANDIDATES, idle))
            if not self._candidates:
                self._look_at = clock() + _LOOK_AGAIN_SECONDS
        while self._candidates:
            since, member = self._candidates.popleft()
            if member in self.members and member.idle_since == since:
                return member
        return None


class OpenConnections:
    """Limits open connections. `has_no_limit` exempts addresses, those of trusted proxies. Call from the loop only."""

    def __init__(
        self,
        most: int = MAX_CONNECTIONS,
        most_per_address: int = MAX_PER_ADDRESS,
        has_no_limit: Callable[[str], bool] = lambda address: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._has_no_limit = has_no_limit
        self._clock = clock
        self._all = _Group()
        self._by_address: dict[str | bytes, _Group] = {}
        self._addresses: dict[Connection, str | bytes] = {}

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._all.members))

    def __len__(self) -> int:
        return len(self._all.members)

    def add(self, connection: Connection, peer: str) -> None:
        """Register a new connection; at a limit, close an idle one or the new one."""
        if not self._has_no_limit(peer):
            address = _network(peer)
            group = self._by_address.get(address)
            if group is not None and len(group.members) >= self._most_per_address:
                if not self._closed_one(group, connection, "address_limit"):
                    return
                group = self._by_address.get(address)
            if group is None:
                group = self._by_address[address] = _Group()
            group.members.add(connection)
            self._addresses[connection] = address
        self._all.members.add(connection)
        if len(self._all.members) > self._most:
            self._all.members.discard(connection)  # the new connection must not be chosen
            if self._closed_one(self._all, connection, "full"):
                self._all.members.add(connection)
            else:
                self.discard(connection)

    def discard(self, connection: Connection) -> None:
        """Deregister a closed connection."""
        self._all.members.discard(connection)
        address = self._addresses.pop(connection, None)
        if address is not None:
            group = self._by_address[address]
            group.members.discard(connection)
            if not group.members:
                del self._by_address[address]

    def _closed_one(self, group: _Group, new: Connection, reason: str) -> bool:
        """Close the longest idle connection of `group`; if none is idle, close the new one and return False."""
        CONNECTIONS_CLOSED.labels(reason).inc()
        idle = group.longest_idle(self._clock)
        if idle is None:
            new.abort()
            return False
        self.discard(idle)
        idle.abort()
        return True


def _network(peer: str) -> str | bytes:
    try:
        address = parse_ip(peer)
    except ValueError:
        return peer
    return address.packed[:_NETWORK_BYTES] if isinstance(address, IPv6Address) else peer
