"""An in-memory transport for tests of agents without Kafka.

It has one process, one reader per group and atomic transactions, but no rebalances, retention or compaction.
tests/contract/test_transport.py runs the same suite on this transport, librdkafka's mock cluster and a real Kafka.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from confluent_kafka import TIMESTAMP_CREATE_TIME, Message
from faust.types import TP

from pipeline.codec.raw_record import Headers, partition_of
from pipeline.errors import ContentError
from pipeline.kafka.transport.app import BatchHandler, process
from pipeline.kafka.transport.batch import FAILURES_IN_A_ROW, Batch, BatchGuard, Outputs
from pipeline.kafka.transport.batch_limit import BatchLimit


class MemoryTopics:
    """Committed records by topic and partition, and committed offsets by group."""

    def __init__(self, partitions: int = 4) -> None:
        self.partitions = partitions
        self.records: dict[str, dict[int, list[Message]]] = defaultdict(
            lambda: {number: [] for number in range(partitions)}
        )
        self.offsets: dict[str, dict[TP, int]] = defaultdict(dict)
        """The next offset of each partition, by group."""

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        """Append one record. Partition -1 selects the partition by the key (CRC32, as in librdkafka)."""
        if partition < 0:
            partition = partition_of(key or b"", self.partitions)
        records = self.records[topic][partition]
        encoded: Headers = [(name, text.encode() if isinstance(text, str) else text) for name, text in headers or ()]
        stamp = (TIMESTAMP_CREATE_TIME, timestamp_ms or time.time_ns() // 1_000_000)
        records.append(
            Message(
                topic=topic,
                partition=partition,
                offset=len(records),
                key=key,
                value=value,
                headers=encoded,
                timestamp=stamp,
            )
        )

    def values(self, topic: str) -> list[bytes | None]:
        """The values of `topic`, partition by partition."""
        return [record.value() for records in self.records[topic].values() for record in records]


@dataclass(slots=True)
class _Queued:
    """Records of an open transaction."""

    topics: MemoryTopics
    waiting: list[Callable[[], None]] = field(default_factory=list)

    def produce(self, *arguments: Any, **options: Any) -> None:
        self.waiting.append(partial(self.topics.produce, *arguments, **options))

    def produce_all(self, topic: str, records: Iterable[tuple[bytes, bytes]], headers: Headers | None = None) -> None:
        for value, key in records:
            self.produce(topic, value, key, headers=headers)


class _NoGuard:
    """See BatchGuard."""

    def raise_if_stale(self) -> None:
        pass

    async def verify(self) -> None:
        pass


class MemoryConsumer:
    """Reads `topic` for `group`, batch by batch."""

    should_stop = False

    def __init__(self, topics: MemoryTopics, group: str, topic: str, batch_records: int = 2000) -> None:
        self._topics = topics
        self._group = group
        self._topic = topic
        self._batch_records = batch_records
        self._limit = BatchLimit(batch_records)
        self._failures = 0

    def next_batch(self) -> Batch | None:
        """Return the next uncommitted records, limited to the batch size; None if there are none."""
        offsets, room = self._topics.offsets[self._group], self._limit.records or self._batch_records
        records: dict[TP, list[Message]] = {}
        for partition, present in self._topics.records[self._topic].items():
            tp = TP(self._topic, partition)
            unread = present[offsets.get(tp, 0) :][:room]
            if unread:
                records[tp] = unread
                room -= len(unread)
        return Batch.of(self, records)

    async def drain(self, handle: BatchHandler) -> None:
        """Pass every batch to `handle`, including batches of records that `handle` produces, until none is left."""
        while (batch := self.next_batch()) is not None:
            await process(batch, self, handle)

    @asynccontextmanager
    async def transaction(self, batch: Batch) -> AsyncIterator[Outputs]:
        """Commit outputs and offsets atomically at the end of the block; commit nothing if it raises."""
        queued = _Queued(self._topics)
        outputs = Outputs(queued)
        try:
            yield outputs
        except BaseException:
            for action in outputs.aborted:
                action()
            raise
        for produce in queued.waiting:
            produce()
        self._topics.offsets[self._group].update(batch.next_offsets)
        self._failures = 0
        self._limit.committed(0.0)
        for action in outputs.committed:
            action()

    @contextmanager
    def guard(self, batch: Batch) -> Iterator[BatchGuard]:
        """Return a guard that always allows side effects, since there are no rebalances."""
        yield _NoGuard()

    def read_again(self, batch: Batch) -> None:
        """Do nothing: every batch starts at the committed offsets."""

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """See BatchConsumer."""
        self._limit.content_failed(len(batch))

    def failed(self, batch: Batch, error: Exception) -> None:
        """Read the batch again; raise `error` after the third consecutive failure."""
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            raise error
