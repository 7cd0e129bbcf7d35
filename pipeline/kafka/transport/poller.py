"""The poll thread, which makes all calls to the Consumer.

librdkafka expects one thread per consumer. Rebalance callbacks run inside `poll` and block it until the loop has finished
the open transaction, so that a revoked partition never has an open transaction of this worker.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

from pipeline.errors import BrokerUnavailable, Stopping, WorkerMustRestart
from pipeline.kafka.client import RepeatFilter
from pipeline.kafka.daemon_thread import ABANDONED_MOST, DaemonThread, abandoned_calls, close_in_background
from pipeline.kafka.group_offsets import GroupOffsets
from pipeline.kafka.transport.assignment import Assignment, Phase
from pipeline.kafka.transport.batch import Batch
from pipeline.kafka.transport.committer import Committer
from pipeline.kafka.transport.end_process import end_process
from pipeline.kafka.transport.gaps import Positions
from pipeline.kafka.transport.outage import OutageWatch
from pipeline.kafka.transport.protocols import AssignmentOwner
from pipeline.kafka.transport.read_batch import by_partition, read_batch
from pipeline.kafka.transport.settings import TransportSettings
from pipeline.kafka.transport.suspension import Suspension
from pipeline.process.stop import SIGNALS

logger = logging.getLogger(__name__)
_repeated = logging.getLogger(f"{__name__}.repeated")
_repeated.addFilter(RepeatFilter())

_LOOP_SLICE_SECONDS = 5.0
_CLOSE_SECONDS = 3.0
_REBUILD_PAUSES_SECONDS = (0.5, 1.0, 2.0, 5.0)
_MARKERS_SECONDS = 5.0
"""After this long without records, offsets after trailing commit markers are committed. Otherwise retention would later
delete offsets that seem unread."""


Callback = Callable[["Poller", Consumer, list[TopicPartition]], None]


def _rebalance(callback: Callback) -> Callback:
    # confluent_kafka turns an exception from a callback into SystemError, or drops it.
    @functools.wraps(callback)
    def guarded(poller: Poller, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is not poller._consumer:
            return  # this consumer was replaced and is being closed
        try:
            with poller._settings.watch.rebalance():
                callback(poller, consumer, partitions)
        except BaseException as error:
            if not SIGNALS.is_stopping:
                logger.exception("rebalance callback failed: callback=%s", callback.__name__)
            end_process(f"{callback.__name__}: {error!r}")

    return guarded


class Poller:
    """Owns the Consumer. Its coroutines run their work on the poll thread."""

    def __init__(self, settings: TransportSettings, owner: AssignmentOwner, committer: Committer) -> None:
        self._settings = settings
        self._owner = owner
        self._committer = committer
        self._loop = asyncio.get_running_loop()
        self._thread = DaemonThread(f"poll-{settings.group}")
        self._outage = OutageWatch(settings.kafka, self._outage_ended)
        self._consumers = 0
        self._consumer = self._new_consumer()
        self._positions = Positions(self._consumer)
        self._moved_at = time.monotonic()
        self._topics: list[str] = []
        self._closing = threading.Event()
        self._fatal: str | None = None
        self._paused: list[TopicPartition] = []
        self._suspension = Suspension()
        self.group_metadata: object = None

    async def subscribe(self, topics: list[str]) -> None:
        """Join the group."""
        await self._run(self._subscribe, topics)

    async def poll(self) -> Batch | None:
        """Return the next batch; None if there are no records within 0.25 s, or the assignment changed in the meantime."""
        batch: Batch | None = await self._run(self._poll)
        return batch

    async def serve(self) -> None:
        """Poll with all partitions paused, so that rebalances and max.poll.interval.ms work while the agents are busy."""
        await self._run(self._serve)

    def stop_waiting(self) -> None:
        """Make all waits for Kafka or the loop return soon. Only `close` may be called afterwards."""
        self._closing.set()

    async def close(self) -> None:
        """Leave the group, without a wait for a Kafka that does not respond."""
        self.stop_waiting()
        leaving = self._run(self._leave)
        await asyncio.wait({leaving}, timeout=_CLOSE_SECONDS)  # unlike wait_for, this does not cancel it
        if leaving.done():
            leaving.result()
            self._thread.stop()
        else:
            logger.warning("group not left in time, its session will expire: group=%s", self._settings.group)
            self._thread.abandon()

    @property
    def suspended_at(self) -> float:
        """See Membership."""
        return self._suspension.ended_at

    def committed_offsets(self, partitions: Sequence[TP]) -> dict[TP, int] | None:
        """Return the group's committed offsets; None once closing. Blocks until they are definite.

        Does not use the poll thread, which may wait in a rebalance callback for the transaction whose outcome is unknown.
        """
        found = self._group_offsets().stable_offsets(partitions)
        return None if found is None else {tp: max(0, offset) for tp, offset in found.items()}

    # On the poll thread ----------------------------------------------------------------------------------------

    def _run(self, call: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.wrap_future(self._thread.submit(self._settings.watch.timed, call, *arguments))

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while not self._closing.is_set():
            try:
                return future.result(_LOOP_SLICE_SECONDS)
            except TimeoutError:
                if future.done():
                    raise
                _repeated.warning("rebalance waits for the open transaction: group=%s", self._settings.group)

    def _subscribe(self, topics: list[str]) -> None:
        self._topics = topics
        self._outage.joining()
        self._consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def _poll(self) -> Batch | None:
        # Read once: an abort or rebalance after this line makes the batch stale.
        assignment = self._committer.assignment
        if self._fatal is not None or assignment.phase is Phase.UNKNOWN:
            self._renew()
            return None
        if self._paused:
            self._consumer.resume(self._paused)
            self._paused = []
        if assignment.must_rewind:
            self._rewind(assignment)
        self._fatal = self._outage.replacement_reason(self._consumer, self._topics[0])
        if self._fatal is not None:
            return None
        messages = self._read(
            lambda: read_batch(self._consumer, self._settings, self._may_grow, self._committer.limit.records)
        )
        self._settings.watch.polled(len(messages), self._consumer, self._committer.assignment.offsets.copy())
        if assignment is not self._committer.assignment:
            self._committer.assignment.must_rewind = True
            return None
        return self._as_batch(assignment, messages)

    def _leave(self) -> None:
        self._consumer.close()  # the current one; it may have been replaced while this call was queued

    def _may_grow(self) -> bool:
        return self._committer.is_slow and not self._closing.is_set()

    def _serve(self) -> None:
        if not self._paused:
            self._paused = [TopicPartition(*tp) for tp in self._committer.assignment.offsets.copy()]
            if self._paused:
                self._consumer.pause(self._paused)
        polled = self._read(lambda: [self._consumer.poll(0.25)])
        for message in self._positions.note(message for message in polled if message is not None):
            if self._is_record(message):
                self._committer.assignment.must_rewind = (
                    True  # fetched before the pause took effect; read it again later
                )

    def _read(self, read: Callable[[], list[Any]]) -> list[Any]:
        try:
            messages = read()
        except KafkaException as error:
            self._failed(error.args[0])
            self._closing.wait(1.0)
            messages = []
        self._suspension.polled()
        self.group_metadata = self._consumer.consumer_group_metadata()
        return messages

    def _rewind(self, assignment: Assignment) -> None:
        assignment.must_rewind = False
        # Not `seek`, which works only for partitions that are being fetched.
        self._positions.assign(assignment.offsets.copy())

    def _renew(self) -> None:
        """Leave the group and rejoin it with a new Consumer. The new assignment rebuilds the state."""
        reason = self._fatal or "transaction outcome unknown"
        logger.error("consumer replaced: group=%s reason=%s", self._settings.group, reason)
        with self._settings.watch.rebalance():
            self._on_loop(self._owner.revoked(lost=True))
        if self._closing.is_set():
            return
        replaced, self._consumer = self._consumer, self._new_consumer()
        if not close_in_background(replaced.close, _CLOSE_SECONDS):
            logger.warning("replaced consumer has not left its group yet: group=%s", self._settings.group)
            if (hanging := abandoned_calls()) > ABANDONED_MOST:
                end_process(f"{hanging} clients hang in librdkafka; only a restart of the process releases them")
        self._fatal, self._paused = None, []
        self._outage.replaced()
        self._positions = Positions(self._consumer)
        self._subscribe(self._topics)

    def _new_consumer(self) -> Consumer:
        # With an `error_cb`, confluent_kafka raises fatal errors from `poll` and reports outages; without one it only logs them.
        self._consumers += 1
        return Consumer(
            {**self._settings.consumer_properties(), "error_cb": functools.partial(self._reported, self._consumers)}
        )

    def _reported(self, number: int, error: KafkaError) -> None:
        if number == self._consumers:  # a replaced consumer may still report errors, from the thread that closes it
            self._outage.failed(error)

    def _group_offsets(self) -> GroupOffsets:
        return GroupOffsets(self._settings.consumer_properties(), self._closing)

    def _outage_ended(self) -> None:
        asyncio.run_coroutine_threadsafe(self._owner.outage_ended(), self._loop)

    @_rebalance
    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._outage.joined()
        asked = [TP(p.topic, p.partition) for p in partitions]
        offsets = self._group_offsets().starting_offsets(asked, self._settings.recover, consumer)
        install = self._rebuilt(list(offsets)) if offsets is not None else None
        if offsets is None or install is None:
            return
        self._positions.assign(offsets)
        # librdkafka keeps partitions paused across rebalances, so without this they would never be read again.
        consumer.resume([TopicPartition(*tp) for tp in offsets])
        self._paused = []
        self.group_metadata = consumer.consumer_group_metadata()
        self._on_loop(self._owner.assigned(offsets, install))

    def _rebuilt(self, partitions: list[TP]) -> Callable[[], None] | None:
        """Rebuild the state of `partitions` and return the function that installs it; None once closing. Retries errors."""
        attempt = 0
        while not self._closing.is_set():
            try:
                return self._settings.listener.rebuild(partitions)
            except Stopping:
                return None
            except (BrokerUnavailable, KafkaException, WorkerMustRestart) as error:
                pause = _REBUILD_PAUSES_SECONDS[min(attempt, len(_REBUILD_PAUSES_SECONDS) - 1)]
                logger.warning("state not rebuilt, will retry: group=%s error=%s", self._settings.group, error)
                self._closing.wait(pause)
                attempt += 1
        return None

    @_rebalance
    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._release(lost=False)

    @_rebalance
    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._release(lost=True)

    def _release(self, lost: bool) -> None:
        self._paused = []
        if not self._closing.is_set():
            self._on_loop(self._owner.revoked(lost))
        self._outage.joining()

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        self._failed(error)
        return False

    def _failed(self, error: KafkaError) -> None:
        self._outage.failed(error)
        # `fatal()` is not set on the error of a message, so check its code, too.
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = f"{error.name()}: {error.str()}"
        _repeated.warning(
            "error while polling: group=%s code=%s error=%s", self._settings.group, error.name(), error.str()
        )

    def _as_batch(self, assignment: Assignment, messages: list[Message]) -> Batch | None:
        records = by_partition(self._positions.note(messages), self._is_record)
        gaps = self._positions.gaps()
        now = time.monotonic()
        if records or gaps:
            self._moved_at = now
        elif now < self._moved_at + _MARKERS_SECONDS:
            return None
        next_offsets = self._positions.to_commit()
        return Batch(assignment, records, next_offsets, gaps) if next_offsets else None
