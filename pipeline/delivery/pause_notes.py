"""Which changes of a waiting connection are written to the ledger, and how often. Pure: state and time in, notes out.

A connection that is down for a day costs one entry a minute at most; one whose reason changes all the time one per ten seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.telemetry.waiting import Waiting

FAILING_AFTER_SECONDS = 5.0
"""A destination that fails for a shorter time is not worth an entry."""
_AGAIN_SECONDS = 60.0
"""The same reason is written again, because an entry of another worker, which still had something to deliver, ends a pause."""
_CHANGED_SECONDS = 10.0

Reason = tuple[bool, str]


@dataclass(slots=True)
class _Told:
    """What the ledger says of one connection; `waiting` is None once it says that it goes on."""

    waiting: Waiting | None = None
    reason: Reason | None = None
    at: float = float("-inf")


@dataclass(slots=True)
class PauseNotes:
    """Remembers what was written, by connection."""

    _told: dict[str, _Told] = field(default_factory=dict)

    def due(self, board: Mapping[str, Waiting], now: float, wall_now: float) -> list[tuple[str, Waiting | None]]:
        """What is to be written now: connections with what they wait for, or None for one that goes on.

        `now` is a monotonic clock's, `wall_now` in seconds since 1970, both in seconds. A note counts as written.
        """
        notes: list[tuple[str, Waiting | None]] = []
        for connection, waiting in board.items():
            told = self._told.setdefault(connection, _Told())
            if self._is_due(told, waiting, now, wall_now):
                told.waiting, told.reason, told.at = waiting, (waiting.misconfigured, waiting.reason), now
                notes.append((connection, waiting))
        for connection, told in self._told.items():
            if connection not in board and told.waiting is not None:
                # A misconfigured connection goes on with its next delivery, which the ledger sees; leaving a group is no repair.
                if not told.waiting.misconfigured:
                    notes.append((connection, None))
                told.waiting = None
        return notes

    def lost(self, connection: str, note: Waiting | None) -> None:
        """The note could not be written; it comes again, in ten seconds where the connection still waits."""
        told = self._told[connection]
        told.reason = None
        told.waiting = told.waiting if note is not None else _LOST

    @staticmethod
    def _is_due(told: _Told, waiting: Waiting, now: float, wall_now: float) -> bool:
        if not waiting.misconfigured and wall_now - waiting.since < FAILING_AFTER_SECONDS:
            return False
        if told.reason != (waiting.misconfigured, waiting.reason):
            return now - told.at >= _CHANGED_SECONDS
        # The board gets a new object at each probe: without one nothing new is known.
        return told.waiting is not waiting and now - told.at >= _AGAIN_SECONDS


_LOST = Waiting(False, "", 0.0, 0.0)
"""Stands for a wait whose end is still to be written."""
