"""The states of one HTTP connection, the legal transitions between them, and the deadlines.

The state decides what happens to input, and how the connection closes. Three more facts change independently of it, so they stay
in the parts that act on them:

- Unanswered requests, in `ResponseQueue`: a client may send further requests before it has its answers.
- Paused reading and paused writing, in `FlowControl`: they depend on the queue, and on how fast the client reads.
- `ResponseQueue.is_stopping`: while the process stops, open requests are still read and answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from enum import Enum, auto

HEADER_SECONDS = 5.0
BODY_SECONDS = 10.0
IDLE_SECONDS = 75.0
LINGER_SECONDS = 5.0


class ConnectionState(Enum):
    """The state of one HTTP connection. Input is read in the first three states, and ignored in the others."""

    AWAITING_REQUEST = auto()
    """Between two requests, or before the first. Earlier requests may be unanswered."""
    READING_HEAD = auto()
    READING_BODY = auto()
    """Inside a body, or in the trailer after it."""
    REFUSING = auto()
    """The last answer is decided, but the client is still sending the request."""
    DRAINING = auto()
    """All requests are read. The connection closes once they are answered."""
    LINGERING = auto()
    """All answers are sent. The connection stays open, because the client is still sending and could lose the last one."""
    CLOSING = auto()
    """The transport sends what it has buffered, and then closes."""
    CLOSED = auto()

    # Enum's own hash is written in Python. It would cost more than the rest of a transition.
    __hash__ = object.__hash__


# As names of this module, because Python 3.11 needs 0.1 us to look up a member in its class.
(
    AWAITING_REQUEST,
    READING_HEAD,
    READING_BODY,
    REFUSING,
    DRAINING,
    LINGERING,
    CLOSING,
    CLOSED,
) = ConnectionState

READING = (AWAITING_REQUEST, READING_HEAD, READING_BODY)
"""States in which input is read."""

TRANSITIONS: Mapping[ConnectionState, frozenset[ConnectionState]] = {
    AWAITING_REQUEST: frozenset({READING_HEAD, REFUSING, DRAINING, CLOSING, CLOSED}),
    READING_HEAD: frozenset({READING_BODY, AWAITING_REQUEST, REFUSING, DRAINING, CLOSED}),
    READING_BODY: frozenset({AWAITING_REQUEST, REFUSING, DRAINING, CLOSED}),
    REFUSING: frozenset({DRAINING, LINGERING, CLOSING, CLOSED}),
    DRAINING: frozenset({CLOSING, CLOSED}),
    LINGERING: frozenset({CLOSING, CLOSED}),
    CLOSING: frozenset({CLOSED}),
    CLOSED: frozenset(),
}
"""The legal transitions. The README of this package shows them as a diagram."""


class Lifecycle:
    """The state, the deadline and the transport of one HTTP connection; its parts share them."""

    __slots__ = ("deadline", "state", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport: asyncio.Transport | None = transport
        """None once the connection is lost."""
        self.state = AWAITING_REQUEST
        self.deadline = time.monotonic() + HEADER_SECONDS
        """When the connection is aborted unless it makes progress, by time.monotonic()."""

    def enter(self, state: ConnectionState) -> None:
        """Change the state. Raises AssertionError if TRANSITIONS does not allow it."""
        assert state in TRANSITIONS[self.state], f"illegal transition: {self.state.name} -> {state.name}"
        self.state = state

    def close(self) -> None:
        """Close once the client has read its answers."""
        if self.transport is not None and self.state is not CLOSING:
            self.enter(CLOSING)
            self.transport.close()

    def abort(self) -> None:
        """Close now; unread answers are lost."""
        if self.transport is not None:
            self.transport.abort()

    def mark_lost(self) -> None:
        """Enter CLOSED, and let go of the transport."""
        self.enter(CLOSED)
        self.transport = None
