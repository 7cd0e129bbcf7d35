"""Reads partitions once, from their start to their current end. All code that reads a topic to its end uses this loop.

The loop does not use `position()`: a partition that retention has emptied never gets a position, so a reader that waits
for one never returns (librdkafka issue 4233). A partition is finished when a record at its end arrives, or when librdkafka
reports the end of the partition at or after that offset. Commit markers, aborted records and offsets that retention
deletes during the read need no special case.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable, Stopping
from pipeline.kafka.client import client_properties
from pipeline.kafka.offsets import PATIENCE_SECONDS, Span, spans
from pipeline.process.stop import SIGNALS

logger = logging.getLogger(__name__)

STALLED_SECONDS = 30.0
"""A read without progress for this long fails. An open transaction blocks a read for at most its timeout."""
_PROGRESS_SECONDS = 5.0
_CHUNK_RECORDS = 1000
_WAIT_SECONDS = 0.1

Progress = Callable[[int, int], None]
"""Called every few seconds with the number of records read so far and the number of offsets left to read."""


class Remaining:
    """Tracks the partitions that are not read to their end yet. Pure; does no I/O."""

    def __init__(self, ranges: Mapping[int, Span]) -> None:
        self.ranges = {number: span for number, span in ranges.items() if not span.is_empty}
        self._next = {number: span.low for number, span in self.ranges.items()}

    def __bool__(self) -> bool:
        return bool(self._next)

    def __contains__(self, partition: int) -> bool:
        return partition in self._next

    @property
    def offsets(self) -> int:
        """Number of offsets left to read; an upper bound of the number of records."""
        return sum(self.ranges[number].end - following for number, following in self._next.items())

    @property
    def partitions(self) -> list[int]:
        """Partitions that are not read to their end, sorted."""
        return sorted(self._next)

    def reached(self, partition: int, next_offset: int) -> bool:
        """Record that everything below `next_offset` in `partition` is read. Returns True if that finishes the partition."""
        if partition not in self._next:
            return False
        if next_offset >= self.ranges[partition].end:
            del self._next[partition]
            return True
        self._next[partition] = max(self._next[partition], next_offset)
        return False


def read_span(
    kafka: KafkaConfig,
    topic: str,
    *,
    committed: bool = True,
    settled: bool = False,
    partitions: Collection[int] | None = None,
    starts: Mapping[int, int] | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    progress: Progress | None = None,
) -> Iterator[Message]:
    """Yield every record that `topic` (or its `partitions`) holds now, in offset order within each partition.

    With `committed`, yields only records of committed transactions, up to the first open transaction. With `settled` too,
    waits for open transactions to end and yields the records after them as well. `starts` maps partitions to their first
    offset; other partitions are read from the low watermark. `patience_seconds` limits the wait for the offsets.
    Raises BrokerUnavailable if Kafka does not respond, the topic does not exist, or the read stalls. Raises Stopping if
    the process is stopping.
    """
    found = spans(
        kafka, topic, committed=committed and not settled, partitions=partitions, patience_seconds=patience_seconds
    )
    if starts is not None:
        found = {number: Span(max(span.low, starts.get(number, span.low)), span.end) for number, span in found.items()}
    return read_ranges(kafka, topic, found, committed=committed, progress=progress)


def read_ranges(
    kafka: KafkaConfig,
    topic: str,
    ranges: Mapping[int, Span],
    *,
    committed: bool = True,
    stalled_seconds: float = STALLED_SECONDS,
    progress: Progress | None = None,
    is_last: Callable[[Message], bool] | None = None,
    fetch_bytes: int | None = None,
) -> Iterator[Message]:
    """Yield the records within `ranges`. Raises BrokerUnavailable after `stalled_seconds` without progress.

    `ranges` maps partitions to offsets. A record for which `is_last` returns true ends its partition early. `fetch_bytes`
    limits the bytes per partition in one fetch response.
    """
    remaining = Remaining(ranges)
    if not remaining:
        return
    consumer = Consumer(
        client_properties(
            kafka,
            group__id="hitrouter-read",  # required by librdkafka; never joined
            enable__auto__commit=False,
            enable__partition__eof=True,
            isolation__level="read_committed" if committed else "read_uncommitted",
            auto__offset__reset="earliest",  # if retention deletes the next offset to read
            fetch__wait__max__ms=50,
            **({} if fetch_bytes is None else {"fetch__message__max__bytes": fetch_bytes}),
        )
    )
    count, moved_at = 0, time.monotonic()
    shown_at = moved_at
    try:
        consumer.assign(
            [TopicPartition(topic, number, remaining.ranges[number].low) for number in remaining.partitions]
        )
        while remaining:
            if SIGNALS.is_stopping:
                raise Stopping(f"reading topic {topic} was cancelled because the process is stopping")
            before, ended = remaining.offsets, []
            for message in consumer.consume(_CHUNK_RECORDS, _WAIT_SECONDS):
                partition, offset, error = message.partition() or 0, message.offset() or 0, message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    logger.warning("read error: topic=%s partition=%s error=%s", topic, partition, error.str())
                    continue
                if partition not in remaining:
                    continue
                is_record = error is None
                following = offset + is_record
                if is_record and offset < remaining.ranges[partition].end:
                    count += 1
                    yield message
                    if is_last is not None and is_last(message):
                        following = remaining.ranges[partition].end
                if remaining.reached(partition, following):
                    ended.append(TopicPartition(topic, partition))
            if ended and remaining:
                # Not `incremental_unassign`: called shortly before `close`, it crashed librdkafka 2.16 (see first_records.py).
                consumer.pause(ended)
            now = time.monotonic()
            if remaining.offsets < before:
                moved_at = now
            if now > moved_at + stalled_seconds:
                raise BrokerUnavailable(
                    f"topic {topic} cannot be read: no progress for {stalled_seconds:.0f} s, {remaining.offsets} offsets left in "
                    f"partitions {remaining.partitions}; check the brokers at {kafka.servers}"
                )
            if now > shown_at + _PROGRESS_SECONDS:
                shown_at = now
                if progress is not None:
                    progress(count, remaining.offsets)
                else:
                    logger.info(
                        "read in progress: topic=%s records=%d offsets_left=%d", topic, count, remaining.offsets
                    )
    finally:
        consumer.close()
