"""What all connections of one intake process share."""

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
"""Headers that proxies add to line by line."""
ONCE = (b"host", b"transfer-encoding", b"authorization")
"""Headers that two servers could read otherwise where a request has them twice (RFC 9112, 3.2 and 6.1)."""

_DATED_ANSWERS = 100
"""Those of accepted requests are few."""
HELD_BYTES = 268_435_456
"""Of bodies at once, on all connections of a process: ten thousand could hold half a megabyte each."""


class Store(Protocol):
    """Where accepted hits go."""

    def store(self, hit: Accepted, report: Any) -> bool:
        """False when full; else `report(stored)` is called on the loop."""


@dataclass(slots=True)
class ServerState:
    """`hide_address` takes away what may not be stored.

    `version` is another one after each change of the configuration: what a head meant before may no longer be so.
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
    """Where browsers reach the intake; None: each request's Host header says it."""
    version: int = 0
    held_bytes: int = 0
    """Of bodies that are not whole, or wait for an answer before theirs."""
    _date: bytes = b""
    _dated: dict[bytes, bytes] = field(default_factory=dict)
    headers: frozenset[bytes] = field(init=False)
    """The names of headers that mean something here, in lower case; forwarded ones only behind a trusted proxy."""

    def __post_init__(self) -> None:
        self.refresh_date()
        self.headers = frozenset(_NEEDED + (FORWARDED if self.addresses.trusts_any else ()))

    def refresh_date(self) -> None:
        """Call it each second: answers say when they were made."""
        self._date = f"Date: {formatdate(usegmt=True)}\r\n".encode()
        self._dated.clear()

    def dated(self, answer: bytes) -> bytes:
        """With the field that a server with a clock adds to each answer (RFC 9110, 6.6.1)."""
        found = self._dated.get(answer)
        if found is None:
            status, line_end, rest = answer.partition(b"\r\n")
            found = status + line_end + self._date + rest
            if len(self._dated) < _DATED_ANSWERS:
                self._dated[answer] = found
        return found
