"""One batch of the route role in one transaction; a hit whose content makes a batch fail becomes a dead letter.

What a hit holds may make its whole batch fail: a record that is too large for Kafka or for its topic, or an error in our code
that nobody foresaw. The same bytes fail again at each try, so a restart does not help. The batch is read again in smaller
ones until the record at fault is alone, which usually takes a second. Its place is noted, and the next batch that holds it
writes a dead letter in its stead. Trouble with Kafka, the network or the disk does not go this way: it passes.
"""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import KafkaException
from faust.types import TP

from pipeline.errors import ContentError, HitrouterError, RecordTooLarge
from pipeline.kafka.expired import record_gaps
from pipeline.kafka.slot_state import IllegalTransition
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.router.prepare import Preparer

_MOST_FAULTS = 1_000
_PASSING = (HitrouterError, KafkaException, IllegalTransition, OSError, MemoryError)
"""What says nothing about a record. HitrouterError: a registry that does not answer, an aborted transaction, a fence."""


class FaultyRecords(dict[tuple[TP, int], str]):
    """By place why a record made its batch fail, until its dead letter is committed. Bounded: the oldest go first."""

    def note(self, batch: Batch, error: Exception) -> None:
        """The only record of `batch` is at fault."""
        while len(self) >= _MOST_FAULTS:
            del self[next(iter(self))]
        for place in _places(batch):
            self[place] = str(error)

    def hold(self, batch: Batch) -> bool:
        """Says whether a record of `batch` is among them."""
        return bool(self) and any(place in self for place in _places(batch))

    def forget(self, batch: Batch) -> None:
        """The records of `batch` are committed."""
        for place in _places(batch) if self else ():
            self.pop(place, None)


def _places(batch: Batch) -> list[tuple[TP, int]]:
    return [(tp, record.offset() or 0) for tp, records in batch.records.items() for record in records]


async def route_batch(
    preparer: Preparer, ledger_topic: str, batch: Batch, consumer: BatchConsumer, faulty: FaultyRecords
) -> None:
    """Route `batch`. Raises StaleBatch, and what is no fault of the content."""

    def take_apart(error: ContentError) -> None:
        if not len(batch) or (len(batch) == 1 and faulty.hold(batch)):
            consumer.failed(batch, error)  # not even its dead letter can be written
            return
        if len(batch) == 1:
            faulty.note(batch, error)
        consumer.read_smaller(batch, error)

    try:
        await _route(preparer, ledger_topic, batch, consumer, faulty, take_apart)
    except ContentError as error:
        take_apart(error)


async def _route(
    preparer: Preparer,
    ledger_topic: str,
    batch: Batch,
    consumer: BatchConsumer,
    faulty: FaultyRecords,
    take_apart: Callable[[ContentError], None],
) -> None:
    try:
        work = preparer.prepare(batch, faulty)
    except Exception as error:
        if _passes(error):
            raise
        raise ContentError(_said(error)) from error
    try:
        async with consumer.transaction(batch) as outputs:
            try:
                work.write(outputs)
            except Exception as error:
                if _passes(error):
                    raise
                raise ContentError(_said(error)) from error
            record_gaps(outputs, ledger_topic, "route", batch)
            outputs.after_commit(lambda: faulty.forget(batch))
            outputs.after_refusal(take_apart)
    except BaseException:
        work.claim.discard()
        raise


def _passes(error: Exception) -> bool:
    """Says whether the same batch may succeed later."""
    return isinstance(error, _PASSING) and not isinstance(error, RecordTooLarge)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, RecordTooLarge) else f"{type(error).__name__}: {error}"
