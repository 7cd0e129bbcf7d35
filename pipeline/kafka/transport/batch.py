"""Types shared by agents and the transport: a batch, its outputs, and the consumer as an agent sees it."""

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
    """The records of one transaction, read from all assigned partitions.

    `assignment` is the one under which they were read, compared by identity; a batch of an earlier one is dropped unprocessed.
    `records` maps each partition to its records in offset order. `next_offsets` holds the offsets to commit. `gaps` holds
    offsets that retention deleted unread, which follow the records of the same partition. A batch may have no records: only
    gaps or `next_offsets`, if retention has emptied a partition or it ends with commit markers.
    """

    assignment: object
    records: Mapping[TP, Sequence[Message]]
    next_offsets: Mapping[TP, int]
    gaps: Mapping[TP, Gap] = field(default_factory=dict)

    @classmethod
    def of(cls, assignment: object, records: Mapping[TP, Sequence[Message]]) -> Batch | None:
        """Return a batch of `records`, or None if there are none. No partition in `records` may be empty."""
        if not records:
            return None
        return cls(assignment, records, {tp: (part[-1].offset() or 0) + 1 for tp, part in records.items()})

    @property
    def oldest_ms(self) -> int | None:
        """Time of the oldest record in Unix milliseconds; None without records."""
        return min((part[0].timestamp()[1] for part in self.records.values()), default=None)

    def __len__(self) -> int:
        return sum(len(records) for records in self.records.values())

    def first(self, counts: Mapping[TP, int]) -> Batch:
        """Return a batch with the first `counts` records of each partition; partitions without a count stay whole."""
        cut = {tp: part[: counts[tp]] for tp, part in self.records.items() if counts.get(tp, len(part)) < len(part)}
        kept = {tp: part for tp, part in {**self.records, **cut}.items() if part}
        offsets = {tp: offset for tp, offset in self.next_offsets.items() if tp not in cut}
        offsets |= {tp: (part[-1].offset() or 0) + 1 for tp, part in cut.items() if part}
        return Batch(self.assignment, kept, offsets, {tp: gap for tp, gap in self.gaps.items() if tp not in cut})


class OutputProducer(Protocol):
    """Queues the records of an open transaction."""

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        """Queue one record. Partition -1 selects the partition by the key."""

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
        """Queue one record. It becomes visible together with the committed offsets of the batch, or never."""
        self.producer.produce(topic, value, key, partition, headers, timestamp_ms)

    def produce_all(self, topic: str, records: Iterable[tuple[bytes, bytes]], headers: Headers | None = None) -> None:
        """Queue (value, key) pairs for one topic, all with the same headers."""
        self.producer.produce_all(topic, records, headers)

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run `action` on the loop once the transaction is committed. Change state in memory only in such an action."""
        self.committed.append(action)

    def after_abort(self, action: Callable[[], None]) -> None:
        """Run `action` on the loop if the transaction is aborted."""
        self.aborted.append(action)

    def after_refusal(self, action: Callable[[ContentError], None]) -> None:
        """Run `action` on the loop once the transaction is aborted because the broker rejected one of its records.

        Without such an action, the batch is read again as after any other abort.
        """
        self.refused.append(action)

    def run_committed(self) -> None:
        """Run the actions for a committed transaction."""
        for action in self.committed:
            action()

    def run_refused(self, error: ContentError) -> None:
        """Run the actions for a transaction aborted because of its records."""
        for action in self.refused:
            action(error)

    def run_aborted(self) -> None:
        """Run the actions for an aborted transaction."""
        for action in self.aborted:
            action()


class BatchGuard(Protocol):
    """Checks whether a batch may still have side effects outside Kafka, such as HTTP requests."""

    def raise_if_stale(self) -> None:
        """Raise StaleBatch if the batch's partitions are revoked or the worker stops; then start no more side effects."""

    async def verify(self) -> None:
        """Return once a commit of this batch can be expected to succeed. Call it before each side effect.

        Usually returns at once. After a pause, it verifies with Kafka that this worker still owns its slot and its partitions.
        Raises StaleBatch if not.
        """


class BatchConsumer(Protocol):
    """The consumer as an agent sees it; on Kafka a TransactionalConsumer."""

    @property
    def should_stop(self) -> bool:
        """True once the worker is stopping."""

    def transaction(self, batch: Batch) -> AbstractAsyncContextManager[Outputs]:
        """Open the transaction of `batch`. It is aborted if the block raises, else committed."""

    def guard(self, batch: Batch) -> AbstractContextManager[BatchGuard]:
        """Delay a rebalance or a stop for up to the grace period while the block runs side effects of `batch`."""

    def read_again(self, batch: Batch) -> None:
        """Read again from the committed offsets, because only a part of `batch` was committed."""

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """Read `batch` again in smaller batches after its content made it fail. Its transaction must be aborted already."""

    def failed(self, batch: Batch, error: Exception) -> None:
        """Report that the agent could not process `batch`."""


class AssignmentListener(Protocol):
    """State that follows the assignment of partitions."""

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        """Build the state of `partitions` on the poll thread, before their first record is read.

        Returns a function that installs the state; it runs on the loop while no batch is being processed.
        """

    def revoked(self) -> None:
        """Drop the state of all partitions. Runs on the loop while no batch is being processed."""


class Stateless:
    """The listener of agents that keep no state between batches."""

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        """Do nothing."""
        return lambda: None

    def revoked(self) -> None:
        """Do nothing."""
