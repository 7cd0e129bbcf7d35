"""Protocols between committer, poll thread and consumer, so that tests can replace each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from confluent_kafka import TopicPartition
from faust.types import TP

from pipeline.kafka.transport.batch import OutputProducer


class SlotProducer(OutputProducer, Protocol):
    """The slot's producer; see TransactionalProducer."""

    def begin(self) -> None:
        """Open a transaction."""

    def commit(self, offsets: Sequence[TopicPartition], group_metadata: object) -> None:
        """See TransactionalProducer.commit. Blocks."""

    def abort(self) -> None:
        """See TransactionalProducer.abort. Blocks."""

    def renew(self) -> None:
        """See TransactionalProducer.renew. Blocks."""


class Membership(Protocol):
    """The group membership as the poll thread knows it; see Poller."""

    group_metadata: object

    @property
    def suspended_at(self) -> float:
        """Monotonic time at which polling last resumed after a pause that may have ended the membership."""

    def committed_offsets(self, partitions: Sequence[TP]) -> Mapping[TP, int] | None:
        """Return the group's committed offsets; None if the worker stops. Blocks until they are definite."""


class AssignmentOwner(Protocol):
    """Handles rebalances on the loop."""

    async def assigned(self, offsets: Mapping[TP, int], install: Callable[[], None]) -> None:
        """Start a new assignment."""

    async def revoked(self, lost: bool) -> None:
        """Finish the open transaction and release all partitions."""

    async def outage_ended(self) -> None:
        """Handle the end of an outage."""
