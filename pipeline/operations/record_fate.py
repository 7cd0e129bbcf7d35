"""Determines from ledger entries whether a record that retention has deleted was read before. Pure.

The offset of the deleted record is unknown. Entries written before the record give a lower bound, as they cover earlier offsets.
"""

from __future__ import annotations

from typing import Literal

from pipeline.codec.ledger_entry import LedgerEntry

Fate = Literal["expired", "read", "unknown", "never written"]

_CLOCK_SLACK_MS = 60_000
"""Assumed largest difference between the clocks of workers and brokers."""


class RecordFate:
    """Derives the fate of a record, written at `written_ms` or later, from the entries of its partition in order.

    `low` is the low watermark of the partition, and `committed` the next offset of its group.
    """

    def __init__(self, written_ms: int, low: int, committed: int) -> None:
        self._written_ms = written_ms - _CLOCK_SLACK_MS
        self._low = low
        self._committed = committed
        self._first = 0
        self._was_read = self._was_deleted = False

    def add(self, entry: LedgerEntry) -> None:
        """Add an entry of the role `deliver` about the partition."""
        if entry.at_ms < self._written_ms:
            self._first = max(self._first, entry.next_offset)
        elif entry.first_offset < self._low and entry.next_offset > self._first:
            if entry.is_gap:
                self._was_deleted = True
            else:
                self._was_read = True

    @property
    def may_be_held(self) -> bool:
        """Whether a worker may hold the record in memory and still deliver it, since none has recorded its deletion."""
        return max(self._committed, self._first) < self._low

    @property
    def fate(self) -> Fate:
        """`expired` or `read` if that is true for all possible offsets of the record; `unknown` if only for some."""
        if self._first >= self._low:
            return "never written"
        was_deleted = self._was_deleted or self.may_be_held
        if was_deleted == self._was_read:
            return "unknown"
        return "expired" if was_deleted else "read"
