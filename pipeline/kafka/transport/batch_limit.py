"""How many records a batch may have while transactions fail. Pure: outcomes in, a number out.

The records of an aborted transaction are read again. Where a batch is too much for Kafka, at the same size it would be
too much for ever: its transaction outlives its time-out, or its outputs fill the producer's queue.
"""

from __future__ import annotations

from pipeline.kafka.transactions import TRANSACTION_TIMEOUT_MS

LEAST_RECORDS = 10
_QUICK_SECONDS = 2.5
"""A transaction that took longer does not allow larger batches: twice as many records would come near the time-out."""
_OUTLIVED_SECONDS = TRANSACTION_TIMEOUT_MS / 1000


class BatchLimit:
    """Halved by an abort that size or content may have caused, doubled by a quick commit. The loop writes, the poll thread reads."""

    def __init__(self, full: int) -> None:
        self._full = full
        self.records: int | None = None
        """At most so many records, and no growth; None: as the settings say."""

    def aborted(self, seconds: float, in_a_row: int) -> None:
        """A transaction was aborted after `seconds`, the last of `in_a_row`. The first quick one says nothing about size."""
        if in_a_row > 1 or seconds >= _OUTLIVED_SECONDS:
            self.records = max(min(LEAST_RECORDS, self._full), (self.records or self._full) // 2)

    def content_failed(self, records: int) -> None:
        """A batch of so many records failed for its content. Smaller ones find the record at fault."""
        self.records = max(1, records // 2)

    def committed(self, seconds: float) -> None:
        """A transaction was committed after `seconds`."""
        if self.records is not None and seconds < _QUICK_SECONDS:
            self.records = None if self.records * 2 >= self._full else self.records * 2
