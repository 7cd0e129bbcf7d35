"""Records whose content makes their whole batch fail: each costs itself, and no other.

What a record holds may make its batch fail: an output that is too large for Kafka or for its topic, or an error in our code that
nobody foresaw. The same bytes fail again at each try, so a restart does not help. The batch is read again in smaller ones until
the record at fault is alone, which usually takes a second. Its place is noted, and the next batch that holds it writes a dead
letter in its stead. Trouble with Kafka, the network or the disk does not go this way: it passes.
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
_PASSING = (HitrouterError, KafkaException, IllegalTransition, OSError, MemoryError)
"""What says nothing about a record. HitrouterError: a registry that does not answer, an aborted transaction, a fence."""


class FaultyRecords(dict[tuple[TP, int], str]):
    """By place why a record made its batch fail, until its dead letter is committed. Bounded: the oldest go first."""

    def take_apart(self, batch: Batch, consumer: BatchConsumer, error: ContentError) -> None:
        """Read `batch`, whose transaction is aborted, again in smaller ones; a record that is alone is at fault."""
        if not len(batch) or (len(batch) == 1 and self._hold(batch)):
            consumer.failed(batch, error)  # not even its dead letter can be written
            return
        if len(batch) == 1:
            self._note(batch, error)
        consumer.read_smaller(batch, error)

    @contextmanager
    def taking_apart(self, batch: Batch, consumer: BatchConsumer) -> Iterator[None]:
        """See `take_apart`, where the block that handles `batch` fails for its content."""
        try:
            yield
        except ContentError as error:
            self.take_apart(batch, consumer, error)

    def forget(self, batch: Batch) -> None:
        """The records of `batch` are committed."""
        for place in _places(batch) if self else ():
            self.pop(place, None)

    def _note(self, batch: Batch, error: Exception) -> None:
        while len(self) >= _MOST_FAULTS:
            del self[next(iter(self))]
        for place in _places(batch):
            self[place] = str(error)

    def _hold(self, batch: Batch) -> bool:
        return bool(self) and any(place in self for place in _places(batch))


@contextmanager
def content_at_fault() -> Iterator[None]:
    """Raise ContentError in place of an error that the same records would bring again; what passes is raised as it is."""
    try:
        yield
    except RecordTooLarge as error:
        raise ContentError(str(error)) from error
    except _PASSING:
        raise
    except Exception as error:
        raise ContentError(f"{type(error).__name__}: {error}") from error


def _places(batch: Batch) -> list[tuple[TP, int]]:
    return [(tp, record.offset() or 0) for tp, records in batch.records.items() for record in records]
