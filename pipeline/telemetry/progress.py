"""Detects a consumer that makes no progress although records are waiting."""

from __future__ import annotations

STALL_SECONDS = 60.0
"""Time without a commit, although records are waiting, after which a worker is not ready."""


class Progress:
    """Compares the last commit with the time since which records are waiting. Times are readings of time.monotonic()."""

    def __init__(self) -> None:
        self._waiting_since: float | None = None

    def reset(self) -> None:
        """Discard the observations, such as those of a previous assignment."""
        self._waiting_since = None

    def observe(self, waiting: bool, committed_at: float | None, now: float) -> None:
        """Record whether records are waiting, and when the last transaction was committed. Call it every few seconds."""
        since = self._waiting_since
        if not waiting:
            self._waiting_since = None
        elif since is None:
            self._waiting_since = now
        else:
            self._waiting_since = max(since, committed_at or since)

    def stalled_since(self, now: float) -> float | None:
        """Return the time of the last progress, or since when records wait, if it is STALL_SECONDS ago; otherwise None."""
        since = self._waiting_since
        return since if since is not None and now - since >= STALL_SECONDS else None
