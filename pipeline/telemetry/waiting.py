"""Tracks which connections of this process wait for their destination, and why, for /readyz and the metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from prometheus_client import Gauge

from pipeline.telemetry.readiness import Condition, State

CONNECTION_WAITING = Gauge(
    "hitrouter_delivery_waiting",
    "1 while a connection waits for its destination; `why` is misconfigured or failing.",
    ["connection", "why"],
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a connection waits. `probe_in_seconds` is the backoff of the last failure; `since` is in seconds since 1970.

    `said` is the text of the destination's answer, redacted. It can hold personal data: write it to the ledger, never to logs.
    """

    misconfigured: bool
    reason: str
    probe_in_seconds: float
    since: float = field(default_factory=time.time)
    said: str = ""


class WaitingConnections:
    """The waiting connections of this process, by name."""

    def __init__(self) -> None:
        self.connections: dict[str, Waiting] = {}
        self._deregistered: set[str] = set()

    def register(self, connection: str) -> None:
        """Accept failures of the connection again, once it delivers in this process."""
        self._deregistered.discard(connection)

    def deregister(self, connection: str) -> None:
        """Deregister the connection and ignore its late failures."""
        self.end(connection)
        self._deregistered.add(connection)

    def begin(self, connection: str, waiting: Waiting) -> None:
        """Record that the connection waits, or still waits."""
        if connection in self._deregistered:
            return
        before = self.connections.get(connection)
        if before is not None and before.misconfigured == waiting.misconfigured:
            waiting = replace(waiting, since=before.since)
        self.connections[connection] = waiting
        CONNECTION_WAITING.labels(connection, "misconfigured").set(waiting.misconfigured)
        CONNECTION_WAITING.labels(connection, "failing").set(not waiting.misconfigured)

    def end(self, connection: str) -> None:
        """Record that the connection delivers again."""
        if self.connections.pop(connection, None) is not None:
            for why in ("misconfigured", "failing"):
                CONNECTION_WAITING.labels(connection, why).set(0)

    def conditions(self, now: float) -> Iterator[Condition]:
        """Yield the lines of /readyz; `now` is a reading of time.monotonic(). Any thread can call."""
        for name, waiting in dict(self.connections).items():
            state = State.MISCONFIGURED if waiting.misconfigured else State.FAILING
            yield Condition(name, state, waiting.reason, now - (time.time() - waiting.since))


WAITING = WaitingConnections()
"""The waiting connections of this process."""
