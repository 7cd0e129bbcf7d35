"""Which connections of this process wait for their destination, and why: /readyz and the metrics show it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from prometheus_client import Gauge

from pipeline.telemetry.readiness import Condition, State

CONNECTION_WAITING = Gauge(
    "hitrouter_delivery_waiting", "1 while a connection waits: why is misconfigured or failing.", ["connection", "why"]
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """`probe_in_seconds` was the backoff when `reason` was seen last; `since` is in seconds since 1970.

    `said` is the text of the destination's answer, redacted. It may hold personal data, so it is for the ledger, not for logs.
    """

    misconfigured: bool
    reason: str
    probe_in_seconds: float
    since: float = field(default_factory=time.time)
    said: str = ""


class Board:
    """By connection what it waits for."""

    def __init__(self) -> None:
        self.connections: dict[str, Waiting] = {}
        self._left: set[str] = set()

    def join(self, connection: str) -> None:
        """It delivers here."""
        self._left.discard(connection)

    def leave(self, connection: str) -> None:
        """It delivers here no more: what is still on its way and fails now says nothing."""
        self.end(connection)
        self._left.add(connection)

    def begin(self, connection: str, waiting: Waiting) -> None:
        """It waits, or goes on waiting."""
        if connection in self._left:
            return
        before = self.connections.get(connection)
        if before is not None and before.misconfigured == waiting.misconfigured:
            waiting = replace(waiting, since=before.since)
        self.connections[connection] = waiting
        CONNECTION_WAITING.labels(connection, "misconfigured").set(waiting.misconfigured)
        CONNECTION_WAITING.labels(connection, "failing").set(not waiting.misconfigured)

    def end(self, connection: str) -> None:
        """It goes on."""
        if self.connections.pop(connection, None) is not None:
            for why in ("misconfigured", "failing"):
                CONNECTION_WAITING.labels(connection, why).set(0)

    def conditions(self, now: float) -> Iterator[Condition]:
        """The lines of /readyz; `now` is a reading of time.monotonic(). Any thread may call."""
        for name, waiting in dict(self.connections).items():
            state = State.MISCONFIGURED if waiting.misconfigured else State.FAILING
            yield Condition(name, state, waiting.reason, now - (time.time() - waiting.since))


WAITING = Board()
"""This process's."""
