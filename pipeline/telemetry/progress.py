"""Whether a consumer makes progress while records wait for it."""

from __future__ import annotations

STALL_SECONDS = 60.0
"""A worker that commits nothing for this long although records wait is not ready."""


class Progress:
    """Compares the last commit with the time since when records wait. Times are readings of time.monotonic()."""

    def __init__(self) -> None:
        self._waiting_since: float | None = None

    def reset(self) -> None:
        """Forget the past, such as that of another assignment."""
        self._waiting_since = None

    def observe(self, waiting: bool, committed_at: float | None, now: float) -> None:
        """Note whether records wait now, and when the last transaction was committed; call it every few seconds."""
        since = self._waiting_since
        if not waiting:
            self._waiting_since = None
        elif since is None:
            self._waiting_since = now
        else:
            self._waiting_since = max(since, committed_at or since)

    def stalled_since(self, now: float) -> float | None:
        """When the last progress was made, or the first record began to wait, once that is too long ago; None while all is well."""
        since = self._waiting_since
        return since if since is not None and now - since >= STALL_SECONDS else None
