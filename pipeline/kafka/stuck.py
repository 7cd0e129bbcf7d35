"""Decides when a client that only fails is thrown away. The caller brings the clock.

A librdkafka producer that lost its broker did not find it again for nine minutes, although others of the same process did
(a soak with a restart of the broker, librdkafka 2.16). A new one connects at once.
"""

from __future__ import annotations

from collections.abc import Callable

STUCK_SECONDS = 15.0
"""Failures alone for this long, then a new client. Each next one waits twice as long, up to LONGEST_SECONDS."""
LONGEST_SECONDS = 60.0


class StuckWatch:
    """Failures in a row of one kind of call; times are readings of time.monotonic(). One thread observes."""

    def __init__(self) -> None:
        self._failing_since: float | None = None
        self._renewals = 0

    def observe(self, works: bool, now: float) -> bool:
        """Note one outcome. Returns True when the client must be replaced now."""
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
    """Says when a client has lost a Kafka that a new client reaches. While nobody reaches it, no client is lost.

    `reaches` asks with a new client (new_client.py), and blocks for two seconds at most.
    """

    def __init__(self, reaches: Callable[[], bool]) -> None:
        self._reaches = reaches
        self._watch = StuckWatch()

    def observe(self, answers: bool, now: float) -> bool:
        """Note whether Kafka `answers` the client. Returns True when it must be replaced now. Blocks when it does not."""
        return self._watch.observe(answers or not self._reaches(), now)
