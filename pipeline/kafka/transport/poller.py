"""The poll thread: every call to the Consumer, and nothing else, happens here.

librdkafka wants one thread per consumer; rebalance callbacks run inside `poll` and hold it until the loop has
finished the transaction at work, so that a revoked partition never has an open transaction of ours.
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
from pipeline.kafka.transport.batch import Batch
from pipeline.kafka.transport.committer import Committer
from pipeline.kafka.transport.end_process import end_process
from pipeline.kafka.transport.gaps import Positions
from pipeline.kafka.transport.outage import OutageWatch
from pipeline.kafka.transport.protocols import AssignmentOwner
from pipeline.kafka.transport.read_batch import read_batch
from pipeline.kafka.transport.settings import SESSION_TIMEOUT_MS, TransportSettings
from pipeline.process.stop import SIGNALS

logger = logging.getLogger(__name__)
_repeated = logging.getLogger(f"{__name__}.repeated")
_repeated.addFilter(RepeatFilter())

_LOOP_SLICE_SECONDS = 5.0
_CLOSE_SECONDS = 3.0
_REBUILD_PAUSES_SECONDS = (0.5, 1.0, 2.0, 5.0)
_MARKERS_SECONDS = 5.0
"""Without records for this long, offsets move past the commit markers at the end of a partition, so that retention never
takes offsets that seem unread."""
SUSPENDED_SECONDS = SESSION_TIMEOUT_MS / 1000 / 2
"""After a gap of this length between two polls the process may have slept past its session."""


Callback = Callable[["Poller", Consumer, list[TopicPartition]], None]


def _rebalance(callback: Callback) -> Callback:
    # An exception that leaves a confluent callback surfaces as SystemError or not at all.
    @functools.wraps(callback)
    def guarded(poller: Poller, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is not poller._consumer:
            return  # it was replaced, and is being closed
        try:
            with poller._settings.watch.rebalance():
                callback(poller, consumer, partitions)
        except BaseException as error:
            if not SIGNALS.is_stopping:
                logger.exception("%s failed", callback.__name__)
            end_process(f"{callback.__name__}: {error!r}")

    return guarded


class Poller:
    """Owns the Consumer; its public coroutines run their work on the poll thread."""

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
        self._polled_at = (time.monotonic(), time.time())
        self._suspended_at = float("-inf")
        self.group_metadata: object = None

    async def subscribe(self, topics: list[str]) -> None:
        """Join the group."""
        await self._run(self._subscribe, topics)

    async def poll(self) -> Batch | None:
        """The next batch; None when nothing came within a quarter of a second or an assignment changed meanwhile."""
        batch: Batch | None = await self._run(self._poll)
        return batch

    async def serve(self) -> None:
        """Poll with all partitions paused: serves rebalances and max.poll.interval while the agents are busy."""
        await self._run(self._serve)

    def stop_waiting(self) -> None:
        """Make every wait for Kafka or for the loop return soon; only `close` may follow."""
        self._closing.set()

    async def close(self) -> None:
        """Leave the group; a Kafka that does not answer is not waited for."""
        self.stop_waiting()
        leaving = self._run(self._leave)
        await asyncio.wait({leaving}, timeout=_CLOSE_SECONDS)  # which does not cancel it, as wait_for would
        if leaving.done():
            leaving.result()
            self._thread.stop()
        else:
            logger.warning("group not left in time, its session will expire: group=%s", self._settings.group)
            self._thread.abandon()

    @property
    def suspended_at(self) -> float:
        """On the monotonic clock: when polling was last resumed after a gap; now, if the gap lasts."""
        now = time.monotonic()
        return now if self._gap_seconds(now) > SUSPENDED_SECONDS else self._suspended_at

    def committed_offsets(self, partitions: Sequence[TP]) -> dict[TP, int] | None:
        """The group's committed offsets; blocks until they are definite, None once closing.

        Not on the poll thread, which may wait in a rebalance callback for the transaction whose outcome is asked for.
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
                _repeated.warning("rebalance waits for the transaction at work: group=%s", self._settings.group)

    def _subscribe(self, topics: list[str]) -> None:
        self._topics = topics
        self._outage.joining()
        self._consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def _poll(self) -> Batch | None:
        # Taken before anything is read: an abort or rebalance after this line makes the batch stale.
        epoch = self._committer.epoch
        if self._fatal is not None or self._committer.must_rejoin:
            self._renew()
            return None
        if self._paused:
            self._consumer.resume(self._paused)
            self._paused = []
        if self._committer.rewind:
            self._committer.rewind = False
            self._rewind()
        self._fatal = self._outage.why_lost(self._consumer, self._topics[0])
        if self._fatal is not None:
            return None
        messages = self._read(
            lambda: read_batch(self._consumer, self._settings, self._may_grow, self._committer.limit.records)
        )
        self._settings.watch.polled(len(messages), self._consumer, self._committer.committed.copy())
        if epoch != self._committer.epoch:
            self._committer.rewind = True
            return None
        return self._as_batch(epoch, messages)

    def _leave(self) -> None:
        self._consumer.close()  # the present one: it may have been replaced while this waited for its turn

    def _may_grow(self) -> bool:
        return self._committer.is_slow and not self._closing.is_set()

    def _serve(self) -> None:
        if not self._paused:
            self._paused = [TopicPartition(*tp) for tp in self._committer.committed.copy()]
            if self._paused:
                self._consumer.pause(self._paused)
        polled = self._read(lambda: [self._consumer.poll(0.25)])
        for message in self._positions.note(message for message in polled if message is not None):
            if self._is_record(message):
                self._committer.rewind = True  # it came before the pause took hold: read it again later

    def _read(self, read: Callable[[], list[Any]]) -> list[Any]:
        try:
            messages = read()
        except KafkaException as error:
            self._failed(error.args[0])
            self._closing.wait(1.0)
            messages = []
        self._note_poll()
        self.group_metadata = self._consumer.consumer_group_metadata()
        return messages

    def _rewind(self) -> None:
        # `seek` of librdkafka needs partitions that are being fetched; `assign` does not.
        self._positions.assign(self._committer.committed.copy())

    def _renew(self) -> None:
        """Leave the group and join it again with a new Consumer; the state is rebuilt with the assignment."""
        reason = self._fatal or "the outcome of a transaction is unknown"
        logger.error("consumer replaced: group=%s reason=%s", self._settings.group, reason)
        with self._settings.watch.rebalance():
            self._on_loop(self._owner.revoked(lost=True))
        if self._closing.is_set():
            return
        replaced, self._consumer = self._consumer, self._new_consumer()
        if not close_in_background(replaced.close, _CLOSE_SECONDS):
            logger.warning("the replaced consumer has not left its group yet: group=%s", self._settings.group)
            if (hanging := abandoned_calls()) > ABANDONED_MOST:
                end_process(f"{hanging} clients hang inside librdkafka; only a new process frees them")
        self._fatal, self._paused, self._committer.must_rejoin = None, [], False
        self._outage.replaced()
        self._positions = Positions(self._consumer)
        self._subscribe(self._topics)

    def _new_consumer(self) -> Consumer:
        # With an `error_cb`, confluent_kafka raises a fatal error from `poll`; without one, and an outage, it would only be logged.
        self._consumers += 1
        return Consumer(
            {**self._settings.consumer_properties(), "error_cb": functools.partial(self._reported, self._consumers)}
        )

    def _reported(self, number: int, error: KafkaError) -> None:
        if number == self._consumers:  # one that was replaced reports while it is closed, on another thread
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
        # librdkafka keeps a pause over rebalances: what a previous assignment has paused would never be read again.
        consumer.resume([TopicPartition(*tp) for tp in offsets])
        self._paused = []
        self.group_metadata = consumer.consumer_group_metadata()
        self._on_loop(self._owner.assigned(offsets, install))

    def _rebuilt(self, partitions: list[TP]) -> Callable[[], None] | None:
        """What installs the state of `partitions`; None once closing. Kafka's trouble is waited out."""
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
        self._give_up(lost=False)

    @_rebalance
    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._give_up(lost=True)

    def _give_up(self, lost: bool) -> None:
        self._paused = []
        if not self._closing.is_set():
            self._on_loop(self._owner.revoked(lost))
        self._outage.joining()

    def _note_poll(self) -> None:
        now = time.monotonic()
        if self._gap_seconds(now) > SUSPENDED_SECONDS:
            self._suspended_at = now
        self._polled_at = (now, time.time())

    def _gap_seconds(self, now: float) -> float:
        # A suspended machine stops the monotonic clock.
        monotonic, wall = self._polled_at
        return max(now - monotonic, time.time() - wall)

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        self._failed(error)
        return False

    def _failed(self, error: KafkaError) -> None:
        self._outage.failed(error)
        # The error of a message does not say that it is fatal; its code does.
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = f"{error.name()}: {error.str()}"
        _repeated.warning("error while polling: group=%s error=%s: %s", self._settings.group, error.name(), error.str())

    def _as_batch(self, epoch: int, messages: list[Message]) -> Batch | None:
        records = self._by_partition(self._positions.note(messages))
        gaps = self._positions.gaps()
        now = time.monotonic()
        if records or gaps:
            self._moved_at = now
        elif now < self._moved_at + _MARKERS_SECONDS:
            return None
        next_offsets = self._positions.to_commit()
        return Batch(epoch, records, next_offsets, gaps) if next_offsets else None

    def _by_partition(self, messages: list[Message]) -> dict[TP, list[Message]]:
        records: dict[TP, list[Message]] = {}
        last: tuple[str | None, int | None] | None = None
        current: list[Message] = []
        for message in messages:
            if message.error() is not None and not self._is_record(message):
                continue
            place = (message.topic(), message.partition())
            if place != last:
                last = place
                current = records.setdefault(TP(*place), [])
            current.append(message)
        return records
