"""What became of a record that retention has taken from a deliveries topic, from the ledger's entries about its partition. Pure.

The offset of the record is not known any more, but a lower bound is: entries from before it was written cover earlier offsets.
"""

from __future__ import annotations

from typing import Literal

from pipeline.codec.ledger_entry import LedgerEntry

Fate = Literal["expired", "read", "unknown", "never there"]

_CLOCK_SLACK_MS = 60_000
"""By as much the clocks of workers and brokers may differ."""


class RecordFate:
    """Takes the entries of one partition in their order, and tells what became of a record written at `written_ms` or later.

    `low` is the partition's low watermark and `committed` its group's next offset.
    """

    def __init__(self, written_ms: int, low: int, committed: int) -> None:
        self._written_ms = written_ms - _CLOCK_SLACK_MS
        self._low = low
        self._committed = committed
        self._first = 0
        self._was_read = self._was_taken = False

    def add(self, entry: LedgerEntry) -> None:
        """Take over an entry of the role `deliver` about the partition."""
        if entry.at_ms < self._written_ms:
            self._first = max(self._first, entry.next_offset)
        elif entry.first_offset < self._low and entry.next_offset > self._first:
            if entry.is_gap:
                self._was_taken = True
            else:
                self._was_read = True

    @property
    def may_be_held(self) -> bool:
        """No worker has recorded that retention took it: one may hold it in memory, and still deliver it."""
        return max(self._committed, self._first) < self._low

    @property
    def fate(self) -> Fate:
        """`expired` and `read` where all offsets that it may have had were so, `unknown` where some were and some were not."""
        if self._first >= self._low:
            return "never there"
        was_taken = self._was_taken or self.may_be_held
        if was_taken == self._was_read:
            return "unknown"
        return "expired" if was_taken else "read"
