"""Shares the state of a running consumer with other threads: the transport writes it, the process health reads it."""

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
"""Interval at which a poll thread without records checks for unread ones."""
_ASK_SECONDS = 2.0
_OLDEST, _NEWEST = -2, -1
"""Timestamps that mean the low watermark and the last stable offset in ListOffsets."""

Answer = TypeVar("Answer")


class WatchedConsumer(Protocol):
    """The consumer that is attached to a ConsumerWatch."""

    @property
    def batches_in_flight(self) -> int:
        """Number of batches that were read and are not committed."""

    @property
    def committed_at(self) -> float | None:
        """Monotonic time of the last committed batch, or None."""

    def unreachable(self, topic: str) -> str | None:
        """Return why nothing can be written to `topic`, or None. Blocks for two seconds at most."""


class ConsumerWatch:
    """Watches one consumer of the process. It outlives the consumer; a changed connection gets a new watch."""

    def __init__(self) -> None:
        self.consumer: WatchedConsumer | None = None
        """The attached consumer; None before it has a producer and after it has left its group."""
        self.calling_since: float | None = None
        """Monotonic start of the poll thread's current call, or of its rest after a rebalance. None between calls and during
        a rebalance."""
        self._thread: int | None = None
        self._unread = False
        self._asked_at = 0.0

    def attach(self, consumer: WatchedConsumer) -> None:
        """Attach a starting consumer."""
        self.consumer = consumer

    def detach(self) -> None:
        """Detach the consumer, which has left its group."""
        self.consumer = None
        self._unread = False

    @property
    def has_waiting(self) -> bool:
        """True if there are records that are not committed, whether read or not."""
        consumer = self.consumer
        return consumer is not None and (consumer.batches_in_flight > 0 or self._unread)

    @property
    def committed_at(self) -> float | None:
        """Monotonic time of the last committed batch, or None."""
        consumer = self.consumer
        return None if consumer is None else consumer.committed_at

    def stack(self) -> str:
        """Return the current stack of the poll thread, for the log. Any thread may call it."""
        frame = None if self._thread is None else sys._current_frames().get(self._thread)
        return "unknown" if frame is None else "".join(traceback.format_stack(frame)).strip()

    # On the poll thread -------------------------------------------------------------------------------------------

    def timed(self, call: Callable[..., Answer], *arguments: Any) -> Answer:
        """Run `call` and record its start while it runs."""
        self._thread = threading.get_ident()
        self.calling_since = time.monotonic()
        try:
            return call(*arguments)
        finally:
            self.calling_since = None

    @contextlib.contextmanager
    def rebalance(self) -> Iterator[None]:
        """Stop timing the current call during a rebalance, which may take minutes because of a rebuild."""
        self.calling_since = None
        try:
            yield
        finally:
            self.calling_since = time.monotonic()

    def polled(self, read: int, consumer: Consumer, committed: Mapping[TP, int]) -> None:
        """Record that a poll has returned `read` records; without records, check for unread ones every 30 s.

        Only this check detects a partition that stays paused or a fetch that hangs.
        """
        now = time.monotonic()
        if read:
            self._unread = False
            self._asked_at = now
        elif now - self._asked_at >= _UNREAD_SECONDS:
            self._asked_at = now
            with contextlib.suppress(KafkaException):  # Reachability detects an unavailable Kafka
                self._unread = has_unread(consumer, committed)


def has_unread(consumer: Consumer, committed: Mapping[TP, int]) -> bool:
    """Return whether any partition of `committed` has committed records after the position of `consumer`. Blocks."""
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
    # The position moves past transaction markers; the committed offset does not.
    for position in consumer.position([TopicPartition(*tp) for tp in committed]):
        place = TP(position.topic, position.partition)
        reached = position.offset if position.offset >= 0 else committed[place]
        # Offsets that retention has deleted do not count as unread.
        if max(reached, lows.get(place, 0)) < ends.get(place, 0):
            return True
    return False


class MemberListener:
    """Reports each assignment to `member`, and forwards it to `listener`."""

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
