"""What committer, poll thread and consumer need from one another, so that tests can replace each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from confluent_kafka import TopicPartition
from faust.types import TP

from pipeline.kafka.transport.batch import OutputProducer


class SlotProducer(OutputProducer, Protocol):
    """The producer of the slot; see TransactionalProducer."""

    def begin(self) -> None:
        """Open a transaction."""

    def commit(self, offsets: Sequence[TopicPartition], group_metadata: object) -> None:
        """Blocks."""

    def abort(self) -> None:
        """Blocks."""

    def renew(self) -> None:
        """Blocks."""


class Membership(Protocol):
    """What the poll thread knows; see Poller."""

    group_metadata: object

    @property
    def suspended_at(self) -> float:
        """On the monotonic clock: when polling was last resumed after a gap that may have cost the membership."""

    def committed_offsets(self, partitions: Sequence[TP]) -> Mapping[TP, int] | None:
        """The group's committed offsets; blocks until they are definite. None when the worker stops."""


class AssignmentOwner(Protocol):
    """The loop's side of a rebalance."""

    async def assigned(self, offsets: Mapping[TP, int], install: Callable[[], None]) -> None:
        """Take over a new assignment."""

    async def revoked(self, lost: bool) -> None:
        """Finish the transaction at work and give everything up."""

    async def outage_ended(self) -> None:
        """Kafka answers again after an outage."""
