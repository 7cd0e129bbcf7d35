"""Metrics of the backlog: the age of the oldest pending record, its remaining retention, and expired offsets.

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
    "Offsets that retention removed before a worker read them; an upper bound of the hits. The connection is empty for hits-raw.",
    ["connection"],
)
OLDEST_PENDING = Gauge(
    "hitrouter_oldest_pending_timestamp_seconds",
    "When the oldest pending record of this worker was written, in seconds since 1970; 0 if none is pending.",
    ["connection"],
)
RETENTION_REMAINING = Gauge(
    "hitrouter_retention_remaining_seconds",
    "How long the topic's retention still keeps the oldest pending record; the whole retention if none is pending.",
    ["connection"],
)
_IDLE_SECONDS = 2.0
"""How long the last batch still counts, since a busy worker has a short gap between two batches."""


class OldestPending:
    """The age of the current batch of one connection. A batch that waits for its destination keeps its age."""

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
        """The topic's retention; infinite if it keeps records for ever, NaN until it is known."""
        OLDEST_PENDING.labels(connection).set_function(self.oldest_seconds)
        RETENTION_REMAINING.labels(connection).set_function(self.remaining_seconds)

    @contextmanager
    def in_progress(self, oldest_ms: int | None) -> Iterator[None]:
        """Count the batch as pending within the block. `oldest_ms` since 1970 is the time of its oldest record, None without one."""
        if oldest_ms is not None:
            self._oldest_seconds, self._idle_since = oldest_ms / 1000, None
        try:
            yield
        finally:
            self._idle_since = self._clock()

    def oldest_seconds(self) -> float:
        """Return when the oldest pending record was written, in seconds since 1970; 0 if none is pending."""
        since = self._idle_since
        return 0.0 if since is not None and self._clock() - since > _IDLE_SECONDS else self._oldest_seconds

    def remaining_seconds(self) -> float:
        """Return how long retention still keeps that record; below zero if it can be removed already."""
        oldest = self.oldest_seconds()
        return self.retention_seconds - (self._wall_clock() - oldest if oldest else 0.0)

    def close(self) -> None:
        """Remove the metrics of this connection."""
        for gauge in (OLDEST_PENDING, RETENTION_REMAINING):
            gauge.remove(self._connection)


class OldestByTopic:
    """The pending batches of this process, by topic."""

    def __init__(self) -> None:
        self.by_topic: dict[str, OldestPending] = {}

    def open(self, topic: str, connection: str) -> OldestPending:
        """Add metrics for `connection`, which reads `topic`."""
        pending = self.by_topic[topic] = OldestPending(connection)
        return pending

    def close(self, topic: str) -> None:
        """Remove the metrics of the connection that reads `topic`."""
        pending = self.by_topic.pop(topic, None)
        if pending is not None:
            pending.close()


OLDEST = OldestByTopic()
"""The pending batches of this process."""
