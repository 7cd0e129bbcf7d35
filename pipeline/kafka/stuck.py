"""Decides when to replace a client whose calls all fail. The caller passes the time.

After a broker restart in a soak test, a producer of librdkafka 2.16 did not reconnect for nine minutes, although other
clients of the same process did. A new client connects at once.
"""

from __future__ import annotations

from collections.abc import Callable

STUCK_SECONDS = 15.0
"""A client is replaced after failing for this long; the interval doubles with each replacement, up to LONGEST_SECONDS."""
LONGEST_SECONDS = 60.0


class StuckWatch:
    """Tracks consecutive failures of one kind of call. Times are values of time.monotonic(); one thread calls `observe`."""

    def __init__(self) -> None:
        self._failing_since: float | None = None
        self._renewals = 0

    def observe(self, works: bool, now: float) -> bool:
        """Record one outcome. Returns True if the client must be replaced now."""
        if works:
            self._failing_since, self._renewals = None, 0
            return False
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since < min(LONGEST_SECONDS, STUCK_SECONDS * 2.0**self._renewals):
            return False
        self._failing_since = now
        self._renewals += 1
        return True


class LostClient:
    """Detects a client that gets no response from Kafka while a new client does.

    If a new client gets no response either, Kafka is unavailable and the client is kept. `reaches` checks with a new client
    (new_client.py), and blocks for two seconds at most.
    """

    def __init__(self, reaches: Callable[[], bool]) -> None:
        self._reaches = reaches
        self._watch = StuckWatch()

    def observe(self, responds: bool, now: float) -> bool:
        """Record whether Kafka `responds` to the client. Returns True if it must be replaced now. Blocks if `responds` is False."""
        return self._watch.observe(responds or not self._reaches(), now)
