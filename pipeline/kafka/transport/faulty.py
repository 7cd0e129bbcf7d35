"""Finds records whose content makes their batch fail, so that only these become dead letters.

The content of a record can make its batch fail: an output is too large for Kafka or for its topic, or our code raises an
unexpected error. The same bytes fail at each attempt, so a restart does not help. The batch is read again in smaller
batches until the faulty record is alone, which usually takes a second. Its position is stored, and the next batch with it
writes a dead letter instead. Errors of Kafka, the network or the disk are temporary and are not handled here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaException
from faust.types import TP

from pipeline.errors import ContentError, HitrouterError, RecordTooLarge
from pipeline.kafka.slot_state import IllegalTransition
from pipeline.kafka.transport.batch import Batch, BatchConsumer

_MOST_FAULTS = 1_000
_NOT_CONTENT = (HitrouterError, KafkaException, IllegalTransition, OSError, MemoryError)
"""Errors that no record causes. HitrouterError: an unavailable registry, an aborted transaction, a fence."""


class FaultyRecords(dict[tuple[TP, int], str]):
    """Maps a position to the reason why its record failed, until its dead letter is committed. Bounded; drops the oldest."""

    def isolate(self, batch: Batch, consumer: BatchConsumer, error: ContentError) -> None:
        """Read `batch` again in smaller batches; if it has only one record, store that as faulty.

        The transaction of `batch` must be aborted already.
        """
        if not len(batch) or (len(batch) == 1 and self._has_any(batch)):
            consumer.failed(batch, error)  # even the dead letter cannot be written
            return
        if len(batch) == 1:
            self._add(batch, error)
        consumer.read_smaller(batch, error)

    @contextmanager
    def isolating(self, batch: Batch, consumer: BatchConsumer) -> Iterator[None]:
        """Call `isolate` if the block that handles `batch` raises ContentError."""
        try:
            yield
        except ContentError as error:
            self.isolate(batch, consumer, error)

    def discard(self, batch: Batch) -> None:
        """Drop the entries of the records of `batch`, which are committed."""
        for place in _places(batch) if self else ():
            self.pop(place, None)

    def _add(self, batch: Batch, error: Exception) -> None:
        while len(self) >= _MOST_FAULTS:
            del self[next(iter(self))]
        for place in _places(batch):
            self[place] = str(error)

    def _has_any(self, batch: Batch) -> bool:
        return bool(self) and any(place in self for place in _places(batch))


@contextmanager
def content_errors() -> Iterator[None]:
    """Raise ContentError in place of errors that the same records would cause again; other errors pass unchanged."""
    try:
        yield
    except RecordTooLarge as error:
        raise ContentError(str(error)) from error
    except _NOT_CONTENT:
        raise
    except Exception as error:
        raise ContentError(f"{type(error).__name__}: {error}") from error


def _places(batch: Batch) -> list[tuple[TP, int]]:
    return [(tp, record.offset() or 0) for tp, records in batch.records.items() for record in records]
