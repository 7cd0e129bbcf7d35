"""The open HTTP connections of one process: bounded in all and by client address, so that nobody locks others out.

A new one takes the place of the one that has been idle longest, of the same address where that has too many. One that has not sent
a request yet goes first: clients lose nothing by it. Only where none is idle the new one is closed.
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
"""So many are found by one look at all of them, which takes some milliseconds."""
_LOOK_AGAIN_SECONDS = 0.1
"""After a look that has found none."""
_NETWORK_BYTES = 8
"""Of an IPv6 address: whoever has one has a whole /64."""


class Connection(Protocol):
    """What the server does with an open connection."""

    @property
    def busy(self) -> bool:
        """Is an answer owed, or a request being read?"""

    @property
    def idle_since(self) -> float | None:
        """Since when nothing happens, a reading of time.monotonic(); earlier than all others before its first request."""

    def sweep(self, now: float) -> None:
        """Close what is too slow."""

    def drain(self) -> None:
        """Answer what is under way, then close."""

    def abort(self) -> None:
        """Close now, also where the client does not read."""


class _Group:
    """Some connections, and those of them that were idle longest at the last look."""

    __slots__ = ("_candidates", "_look_at", "members")

    def __init__(self) -> None:
        self.members: set[Connection] = set()
        self._candidates: deque[tuple[float, Connection]] = deque()
        self._look_at = 0.0

    def longest_idle(self, clock: Callable[[], float]) -> Connection | None:
        """Return it, once; None when none is idle."""
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
    """`has_no_limit` names addresses of many clients: those of trusted proxies. Call from the loop only."""

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
        """Keep a new one, and close one in its place, or itself, where there are too many."""
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
            self._all.members.discard(connection)  # it has just come, and is no candidate
            if self._closed_one(self._all, connection, "full"):
                self._all.members.add(connection)
            else:
                self.discard(connection)

    def discard(self, connection: Connection) -> None:
        """It is closed."""
        self._all.members.discard(connection)
        address = self._addresses.pop(connection, None)
        if address is not None:
            group = self._by_address[address]
            group.members.discard(connection)
            if not group.members:
                del self._by_address[address]

    def _closed_one(self, group: _Group, new: Connection, reason: str) -> bool:
        """Close the one of `group` that is idle longest; where none is, close the new one and return False."""
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
