"""Decides which changes of paused connections are written to the ledger, and how often. Pure; does no I/O.

A connection that is down for a day causes at most one entry per minute. If its reason changes constantly, it causes at most one per
ten seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.telemetry.waiting import Waiting

FAILING_AFTER_SECONDS = 5.0
"""Shorter failures are not written."""
_AGAIN_SECONDS = 60.0
"""Interval at which the same reason is written again: an entry of another worker that still delivered may have ended the pause."""
_CHANGED_SECONDS = 10.0
"""Shortest interval between entries with different reasons."""

Reason = tuple[bool, str]


@dataclass(slots=True)
class _Written:
    """The last entry of one connection in the ledger; `waiting` is None if it says that the connection has resumed."""

    waiting: Waiting | None = None
    reason: Reason | None = None
    at: float = float("-inf")


@dataclass(slots=True)
class PauseNotes:
    """Tracks the last written entry of each connection."""

    _written: dict[str, _Written] = field(default_factory=dict)

    def due(self, board: Mapping[str, Waiting], now: float, wall_now: float) -> list[tuple[str, Waiting | None]]:
        """Return the notes to write now: connections with the reason of their pause, or None for a resumed one.

        `now` is a reading of a monotonic clock, `wall_now` is Unix time; both are in seconds. Returned notes count as written.
        """
        notes: list[tuple[str, Waiting | None]] = []
        for connection, waiting in board.items():
            written = self._written.setdefault(connection, _Written())
            if self._is_due(written, waiting, now, wall_now):
                written.waiting, written.reason, written.at = waiting, (waiting.misconfigured, waiting.reason), now
                notes.append((connection, waiting))
        for connection, written in self._written.items():
            if connection not in board and written.waiting is not None:
                # Only a delivery proves that a misconfigured connection works again, and the ledger counts deliveries anyway. A
                # connection also leaves the board when the worker loses its partitions.
                if not written.waiting.misconfigured:
                    notes.append((connection, None))
                written.waiting = None
        return notes

    def mark_lost(self, connection: str, note: Waiting | None) -> None:
        """Make a note due again that could not be written; after ten seconds if the connection is still paused."""
        written = self._written[connection]
        written.reason = None
        written.waiting = written.waiting if note is not None else _LOST

    @staticmethod
    def _is_due(written: _Written, waiting: Waiting, now: float, wall_now: float) -> bool:
        if not waiting.misconfigured and wall_now - waiting.since < FAILING_AFTER_SECONDS:
            return False
        if written.reason != (waiting.misconfigured, waiting.reason):
            return now - written.at >= _CHANGED_SECONDS
        # Each probe puts a new object on the board; the same object means that there was no probe since.
        return written.waiting is not waiting and now - written.at >= _AGAIN_SECONDS


_LOST = Waiting(False, "", 0.0, 0.0)
"""Represents a pause whose end must still be written."""
