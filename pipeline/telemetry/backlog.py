"""How long the oldest record at work has waited, how long retention still keeps it, and what retention took unread.

`connection` is "" for `hits-raw`, which the router reads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge

EXPIRED_OFFSETS = Counter(
    "hitrouter_expired_offsets",
    "Offsets that retention took before a worker read them; an upper bound of the hits. The connection is empty for hits-raw.",
    ["connection"],
)
OLDEST_PENDING = Gauge(
    "hitrouter_oldest_pending_timestamp_seconds",
    "When the oldest record that this worker still has to settle was written, in seconds since 1970; 0 while none waits.",
    ["connection"],
)
RETENTION_REMAINING = Gauge(
    "hitrouter_retention_remaining_seconds",
    "How long the topic's retention still keeps the oldest record that waits; the whole retention while none waits.",
    ["connection"],
)
_IDLE_SECONDS = 2.0
"""Between two batches of a busy worker nothing is at work for a moment."""


class OldestPending:
    """The age of the batch at work of one connection. A batch that waits for its destination keeps its age."""

    def __init__(
        self,
        connection: str,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._wall_clock, self._clock = wall_clock, clock
        self._oldest_seconds = 0.0
        self._idle_since: float | None = clock()
        self.retention_seconds = math.nan
        """The topic's retention; infinite where it keeps records for ever, NaN until it is known."""
        OLDEST_PENDING.labels(connection).set_function(self.oldest_seconds)
        RETENTION_REMAINING.labels(connection).set_function(self.remaining_seconds)

    @contextmanager
    def at_work(self, oldest_ms: int | None) -> Iterator[None]:
        """A batch whose oldest record was written at `oldest_ms` since 1970 is at work within the block; None: it has no record."""
        if oldest_ms is not None:
            self._oldest_seconds, self._idle_since = oldest_ms / 1000, None
        try:
            yield
        finally:
            self._idle_since = self._clock()

    def oldest_seconds(self) -> float:
        """When the oldest record at work was written, in seconds since 1970; 0 when nothing is at work."""
        since = self._idle_since
        return 0.0 if since is not None and self._clock() - since > _IDLE_SECONDS else self._oldest_seconds

    def remaining_seconds(self) -> float:
        """How long retention still keeps that record; below zero when it may be gone already."""
        oldest = self.oldest_seconds()
        return self.retention_seconds - (self._wall_clock() - oldest if oldest else 0.0)

    def close(self) -> None:
        """Show this connection no more."""
        for gauge in (OLDEST_PENDING, RETENTION_REMAINING):
            gauge.remove(self._connection)


class OldestByTopic:
    """What this process has at work, by topic."""

    def __init__(self) -> None:
        self.by_topic: dict[str, OldestPending] = {}

    def open(self, topic: str, connection: str) -> OldestPending:
        """Show `connection`, which reads `topic`, from now on."""
        made = self.by_topic[topic] = OldestPending(connection)
        return made

    def close(self, topic: str) -> None:
        """Show it no more."""
        left = self.by_topic.pop(topic, None)
        if left is not None:
            left.close()


OLDEST = OldestByTopic()
"""This process's."""
