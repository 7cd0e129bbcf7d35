"""What other threads may know of a running consumer: written by the transport, read by the health of the process."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaException, TopicPartition
from faust.types import TP

from pipeline.kafka.transport.batch import AssignmentListener
from pipeline.telemetry.members import Member

_UNREAD_SECONDS = 30.0
"""Interval at which a poll thread that reads nothing asks whether there is something to read."""
_ASK_SECONDS = 2.0
_OLDEST, _NEWEST = -2, -1
"""Timestamps that ListOffsets takes for the low watermark and for the last stable offset."""

Answer = TypeVar("Answer")


class WatchedConsumer(Protocol):
    """What a watch asks of the consumer that is attached to it."""

    @property
    def batches_in_flight(self) -> int:
        """Batches that were read and are not committed."""

    @property
    def committed_at(self) -> float | None:
        """When a batch was committed last, a reading of time.monotonic()."""

    def unreachable(self, topic: str) -> str | None:
        """Why nothing can be written to `topic`; blocks for two seconds at most."""


class ConsumerWatch:
    """One consumer of the process. It outlives the consumer: a connection that changes gets another one."""

    def __init__(self) -> None:
        self.consumer: WatchedConsumer | None = None
        """None before the consumer has a producer, and after it has left its group."""
        self.calling_since: float | None = None
        """When the poll thread began its present call, or went on with it after a rebalance; None between two and in one."""
        self._thread: int | None = None
        self._unread = False
        self._asked_at = 0.0

    def attach(self, consumer: WatchedConsumer) -> None:
        """`consumer` starts."""
        self.consumer = consumer

    def detach(self) -> None:
        """The consumer has left."""
        self.consumer = None
        self._unread = False

    @property
    def has_waiting(self) -> bool:
        """Whether records wait: read and not committed, or not even read."""
        consumer = self.consumer
        return consumer is not None and (consumer.batches_in_flight > 0 or self._unread)

    @property
    def committed_at(self) -> float | None:
        """When a batch was committed last, a reading of time.monotonic()."""
        consumer = self.consumer
        return None if consumer is None else consumer.committed_at

    def where(self) -> str:
        """The place in the code where the poll thread is now, for the log; from any thread."""
        frame = None if self._thread is None else sys._current_frames().get(self._thread)
        return "unknown" if frame is None else "".join(traceback.format_stack(frame)).strip()

    # On the poll thread -------------------------------------------------------------------------------------------

    def timed(self, call: Callable[..., Answer], *arguments: Any) -> Answer:
        """Make `call` and note how long it takes."""
        self._thread = threading.get_ident()
        self.calling_since = time.monotonic()
        try:
            return call(*arguments)
        finally:
            self.calling_since = None

    @contextlib.contextmanager
    def rebalance(self) -> Iterator[None]:
        """The call at work has led to a rebalance, which may take minutes: a rebuild reads what it needs."""
        self.calling_since = None
        try:
            yield
        finally:
            self.calling_since = time.monotonic()

    def polled(self, read: int, consumer: Consumer, committed: Mapping[TP, int]) -> None:
        """A poll has returned `read` records; looks for unread ones when that is nothing, seldom.

        A partition that stays paused, or a fetch that hangs, shows in no other way.
        """
        now = time.monotonic()
        if read:
            self._unread = False
            self._asked_at = now
        elif now - self._asked_at >= _UNREAD_SECONDS:
            self._asked_at = now
            with contextlib.suppress(KafkaException):  # Reachability notices that Kafka does not answer
                self._unread = has_unread(consumer, committed)


def has_unread(consumer: Consumer, committed: Mapping[TP, int]) -> bool:
    """Whether committed records lie behind the position of `consumer` in any partition of `committed`. Blocks."""
    if not committed:
        return False
    ends, lows = (
        {
            (found.topic, found.partition): found.offset
            for found in consumer.offsets_for_times(
                [TopicPartition(tp.topic, tp.partition, which) for tp in committed], _ASK_SECONDS
            )
            if found.error is None
        }
        for which in (_NEWEST, _OLDEST)
    )
    # The position passes markers of transactions, which the committed offset does not.
    for position in consumer.position([TopicPartition(*tp) for tp in committed]):
        place = TP(position.topic, position.partition)
        reached = position.offset if position.offset >= 0 else committed[place]
        # What retention has taken is not unread.
        if max(reached, lows.get(place, 0)) < ends.get(place, 0):
            return True
    return False


class MemberListener:
    """Tells `member` about each assignment, and passes it on to `listener`."""

    def __init__(self, listener: AssignmentListener, member: Member) -> None:
        self._listener = listener
        self._member = member

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        """See AssignmentListener."""
        assigned = list(partitions)
        self._member.rebuilding(len(assigned), time.monotonic())
        install = self._listener.rebuild(assigned)

        def installed() -> None:
            install()
            self._member.joined(time.monotonic())

        return installed

    def revoked(self) -> None:
        """See AssignmentListener."""
        self._member.joining(time.monotonic())
        self._listener.revoked()
