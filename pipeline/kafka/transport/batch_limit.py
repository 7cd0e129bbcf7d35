"""Limits the number of records per batch while transactions fail. Pure; does no I/O.

The records of an aborted transaction are read again. A batch that is too large for Kafka would fail again at the same
size: its transaction exceeds the timeout, or its outputs fill the producer's queue.
"""

from __future__ import annotations

from pipeline.kafka.transactions import TRANSACTION_TIMEOUT_MS

LEAST_RECORDS = 10
_QUICK_SECONDS = 2.5
"""After a slower transaction the limit is kept: with twice as many records, it would come close to the timeout."""
_EXPIRED_SECONDS = TRANSACTION_TIMEOUT_MS / 1000


class BatchLimit:
    """Halves the limit after an abort that size or content may have caused, and doubles it after a quick commit.

    The loop writes it, the poll thread reads it.
    """

    def __init__(self, full: int) -> None:
        self._full = full
        self.records: int | None = None
        """Maximum number of records, without growth; None means the configured size."""

    def aborted(self, seconds: float, in_a_row: int) -> None:
        """Record an abort after `seconds`, the last of `in_a_row` aborts. A single quick abort does not change the limit."""
        if in_a_row > 1 or seconds >= _EXPIRED_SECONDS:
            self.records = max(min(LEAST_RECORDS, self._full), (self.records or self._full) // 2)

    def content_failed(self, records: int) -> None:
        """Record that a batch of `records` failed because of its content. Halving finds the faulty record."""
        self.records = max(1, records // 2)

    def committed(self, seconds: float) -> None:
        """Record a commit after `seconds`."""
        if self.records is not None and seconds < _QUICK_SECONDS:
            self.records = None if self.records * 2 >= self._full else self.records * 2
