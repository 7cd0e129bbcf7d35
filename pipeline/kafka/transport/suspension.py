"""Detects that the process was suspended, by the time between two polls."""

from __future__ import annotations

import time

from pipeline.kafka.transport.settings import SESSION_TIMEOUT_MS

SUSPENDED_SECONDS = SESSION_TIMEOUT_MS / 1000 / 2
"""After a pause of this length between two polls, the process may have been suspended past its session timeout."""


class Suspension:
    """The poll thread calls `polled`; any thread reads `ended_at`."""

    def __init__(self) -> None:
        self._polled_at = (time.monotonic(), time.time())
        self._ended_at = float("-inf")

    def polled(self) -> None:
        """Record a poll."""
        now = time.monotonic()
        if self._gap_seconds(now) > SUSPENDED_SECONDS:
            self._ended_at = now
        self._polled_at = (now, time.time())

    @property
    def ended_at(self) -> float:
        """Monotonic time at which polling last resumed after a long pause; the current time during such a pause."""
        now = time.monotonic()
        return now if self._gap_seconds(now) > SUSPENDED_SECONDS else self._ended_at

    def _gap_seconds(self, now: float) -> float:
        # A suspended machine stops the monotonic clock.
        monotonic, wall = self._polled_at
        return max(now - monotonic, time.time() - wall)
