"""What an agent receives as the value of one Faust message: the records of one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from confluent_kafka import Message
from faust.types import TP

from pipeline.codec.raw_record import Headers
from pipeline.errors import ContentError
from pipeline.kafka.transport.gaps import Gap

FAILURES_IN_A_ROW = 3
"""Consecutive failures of an agent before the process exits."""


@dataclass(slots=True, frozen=True)
class Batch:
    """Records of all assigned partitions since the last poll, capped.

    `epoch` numbers the assignment they were read under: a batch of an older epoch is dropped unprocessed.
    `records` maps each partition to its records in offset order; `next_offsets` is what the transaction commits.
    `gaps` are offsets that retention took unread, after the records of the same partition. A batch may hold gaps or
    `next_offsets` alone: where partitions were emptied, or end with commit markers.
    """

    epoch: int
    records: Mapping[TP, Sequence[Message]]
    next_offsets: Mapping[TP, int]
    gaps: Mapping[TP, Gap] = field(default_factory=dict)

    @classmethod
    def of(cls, epoch: int, records: Mapping[TP, Sequence[Message]]) -> Batch | None:
        """The batch of `records`, whose parts are not empty; None when there are none at all."""
        if not records:
            return None
        return cls(epoch, records, {tp: (part[-1].offset() or 0) + 1 for tp, part in records.items()})

    @property
    def oldest_ms(self) -> int | None:
        """When its oldest record was written, in milliseconds since 1970; None without records."""
        return min((part[0].timestamp()[1] for part in self.records.values()), default=None)

    def __len__(self) -> int:
        return sum(len(records) for records in self.records.values())

    def first(self, counts: Mapping[TP, int]) -> Batch:
        """Return the part with only the first `counts` records of each partition; a partition without a count stays whole."""
        cut = {tp: part[: counts[tp]] for tp, part in self.records.items() if counts.get(tp, len(part)) < len(part)}
        kept = {tp: part for tp, part in {**self.records, **cut}.items() if part}
        offsets = {tp: offset for tp, offset in self.next_offsets.items() if tp not in cut}
        offsets |= {tp: (part[-1].offset() or 0) + 1 for tp, part in cut.items() if part}
        return Batch(self.epoch, kept, offsets, {tp: gap for tp, gap in self.gaps.items() if tp not in cut})


class OutputProducer(Protocol):
    """Where records of an open transaction are queued."""

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        """Queue one record; partition -1 lets the key decide."""

    def produce_all(self, topic: str, records: Iterable[tuple[bytes, bytes]], headers: Headers | None = None) -> None:
        """Queue (value, key) pairs for one topic, all with the same headers."""


@dataclass(slots=True)
class Outputs:
    """The open transaction as an agent sees it."""

    producer: OutputProducer
    committed: list[Callable[[], None]] = field(default_factory=list)
    aborted: list[Callable[[], None]] = field(default_factory=list)
    refused: list[Callable[[ContentError], None]] = field(default_factory=list)

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        """Queue one record; it becomes visible with the offsets of the batch or never."""
        self.producer.produce(topic, value, key, partition, headers, timestamp_ms)

    def produce_all(self, topic: str, records: Iterable[tuple[bytes, bytes]], headers: Headers | None = None) -> None:
        """Queue (value, key) pairs for one topic, all with the same headers."""
        self.producer.produce_all(topic, records, headers)

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run `action` on the loop once the transaction is committed: the only place where memory may change."""
        self.committed.append(action)

    def after_abort(self, action: Callable[[], None]) -> None:
        """Run `action` on the loop if the transaction is aborted."""
        self.aborted.append(action)

    def after_refusal(self, action: Callable[[ContentError], None]) -> None:
        """Run `action` on the loop once the transaction is aborted because the broker refuses a record of it.

        Without such an action the batch is read again as after any other abort.
        """
        self.refused.append(action)

    def run_committed(self) -> None:
        """The transaction is committed."""
        for action in self.committed:
            action()

    def run_refused(self, error: ContentError) -> None:
        """The transaction is aborted for what its records hold."""
        for action in self.refused:
            action(error)

    def run_aborted(self) -> None:
        """The transaction is aborted."""
        for action in self.aborted:
            action()


class BatchGuard(Protocol):
    """What stands between a batch and its side effects outside Kafka."""

    def raise_if_stale(self) -> None:
        """Raise StaleBatch when the batch's partitions are gone or the worker stops: start nothing more of it."""

    async def verify(self) -> None:
        """Return once a commit of this batch can be expected to succeed; call it before each side effect.

        Usually it does nothing. After a pause, it asks Kafka whether this worker still has its slot and its partitions. Raises
        StaleBatch when not.
        """


class BatchConsumer(Protocol):
    """What an agent may ask of the consumer that handed it a batch; on Kafka a TransactionalConsumer."""

    epoch: int

    @property
    def should_stop(self) -> bool:
        """Is the worker on its way out?"""

    def transaction(self, batch: Batch) -> AbstractAsyncContextManager[Outputs]:
        """The transaction of `batch`: an error inside takes it back, else it is committed."""

    def guard(self, batch: Batch) -> AbstractContextManager[BatchGuard]:
        """Hold up a rebalance and a stop for a moment while side effects of `batch` are under way."""

    def read_again(self, batch: Batch) -> None:
        """Read from the committed offsets, because only a part of `batch` was committed."""

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """Read `batch` again in smaller batches, because its content made it fail; its transaction is aborted by now."""

    def failed(self, batch: Batch, error: Exception) -> None:
        """The agent could not process `batch`."""


class AssignmentListener(Protocol):
    """State that follows the assignment of partitions."""

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        """Build the state of `partitions`, on the poll thread, before their first record is read.

        Returns what installs it; that runs on the loop while no batch is at work.
        """

    def revoked(self) -> None:
        """All partitions are gone; runs on the loop while no batch is at work."""


class Stateless:
    """The listener of agents that keep nothing between batches."""

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        """Nothing to build."""
        return lambda: None

    def revoked(self) -> None:
        """Nothing to drop."""
