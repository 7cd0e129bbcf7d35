"""What the committer needs from producer and poll thread, so that tests can replace both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Membership(Protocol):
    """What the poll thread knows; see Poller."""

    group_metadata: object

    @property
    def suspended_at(self) -> float:
        """On the monotonic clock: when polling was last resumed after a gap that may have cost the membership."""

    def committed_offsets(self, partitions: Sequence[TP]) -> Mapping[TP, int] | None:
        """The group's committed offsets; blocks until they are definite. None when the worker stops."""
