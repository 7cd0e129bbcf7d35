"""State that all HTTP connections of one intake process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Protocol

from pipeline.intake.admission import Admission
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.open_connections import OpenConnections
from pipeline.intake.refused import RefusedRequests
from pipeline.stages.accept import Accepted

_NEEDED = (
    *(b"authorization", b"content-type", b"content-encoding", b"user-agent", b"origin"),
    *(b"host", b"expect", b"upgrade", b"content-length", b"transfer-encoding"),
)
FORWARDED = (b"x-forwarded-for", b"forwarded")
"""Headers that each proxy may repeat; their lines are joined."""
ONCE = (b"host", b"transfer-encoding", b"authorization")
"""Headers that must not be repeated: two servers could read a repeated one differently (RFC 9112, 3.2 and 6.1)."""

_DATED_ANSWERS = 100
"""Cached answers with a Date header. Accepted requests have only a few distinct answers."""
HELD_BYTES = 268_435_456
"""Limit on the bytes of buffered bodies per process: 10,000 connections could buffer half a megabyte each."""


class Store(Protocol):
    """Where accepted hits go."""

    def store(self, hit: Accepted, report: Any) -> bool:
        """Return False when full; else call `report(stored)` later on the loop."""


@dataclass(slots=True)
class ServerState:
    """`hide_address` anonymises an address where the operator asks for it.

    `version` changes with each reload of the configuration, and invalidates the cached heads of all connections.
    """

    endpoints: Endpoints
    store: Store
    document: bytes
    addresses: ClientAddress
    hide_address: Callable[[str], str]
    connections: OpenConnections = field(default_factory=OpenConnections)
    refused: RefusedRequests = field(default_factory=RefusedRequests)
    admission: Admission = field(default_factory=Admission)
    public_url: str | None = None
    """URL under which browsers reach the intake; None: derived from each request's Host header."""
    version: int = 0
    held_bytes: int = 0
    """Bytes of bodies that are incomplete, or wait behind an earlier request of their connection."""
    _date: bytes = b""
    _dated: dict[bytes, bytes] = field(default_factory=dict)
    headers: frozenset[bytes] = field(init=False)
    """Lower-case names of the headers that the intake reads; forwarded ones only if a proxy is trusted."""

    def __post_init__(self) -> None:
        self.refresh_date()
        self.headers = frozenset(_NEEDED + (FORWARDED if self.addresses.trusts_any else ()))

    def refresh_date(self) -> None:
        """Renew the Date header of answers; call it at least once per second."""
        self._date = f"Date: {formatdate(usegmt=True)}\r\n".encode()
        self._dated.clear()

    def dated(self, answer: bytes) -> bytes:
        """Return `answer` with a Date header (RFC 9110, 6.6.1)."""
        found = self._dated.get(answer)
        if found is None:
            status, line_end, rest = answer.partition(b"\r\n")
            found = status + line_end + self._date + rest
            if len(self._dated) < _DATED_ANSWERS:
                self._dated[answer] = found
        return found
