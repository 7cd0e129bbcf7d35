"""Whether a consumer makes progress while records wait for it."""

from __future__ import annotations

STALL_SECONDS = 60.0
"""A worker that commits nothing for this long although records wait is not ready."""


class Progress:
    """Compares the last commit with the time since when records wait. `now` is a reading of time.monotonic().

    Not for two writers: one thread observes, one commits; any thread reads.
    """

    def __init__(self) -> None:
        self._committed_at: float | None = None
        self._waiting_since: float | None = None

    def reset(self) -> None:
        """Forget the past: the assignment has changed."""
        self._committed_at = self._waiting_since = None

    def committed(self, now: float) -> None:
        """A transaction was committed."""
        self._committed_at = now

    def observe(self, waiting: bool, now: float) -> None:
        """Note whether records wait now; call it every few seconds."""
        if not waiting:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now

    def stalled_since(self, now: float) -> float | None:
        """When the last progress was made, once that is too long ago; None while all is well."""
        since = self._waiting_since
        if since is None:
            return None
        if self._committed_at is not None:
            since = max(since, self._committed_at)
        return since if now - since >= STALL_SECONDS else None
