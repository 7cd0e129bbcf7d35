"""The poll thread: every call to the Consumer, and nothing else, happens here.

librdkafka wants one thread per consumer; rebalance callbacks run inside `poll` and hold it until the loop has
finished the transaction at work, so that a revoked partition never has an open transaction of ours.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

from pipeline.kafka.transport.batch import Batch
from pipeline.kafka.transport.gaps import Positions
from pipeline.kafka.transport.settings import TransportSettings

logger = logging.getLogger("hitrouter.kafka.poller")

EXIT_MUST_RESTART = 70
_LOOP_SECONDS = 60.0
_COMMITTED_SECONDS = 60.0
_MARKERS_SECONDS = 30.0
"""Without records for this long, offsets move past the commit markers at the end of a partition, so that retention never
takes offsets that seem unread."""
_SLICE_RECORDS = 250
"""By so many records a batch may go beyond its bytes."""


def end_process(reason: str) -> None:
    """Leave at once with exit code 70; the open transaction is ended by the successor on this seat."""
    logger.critical("this worker ends, to be started again: %s", reason)
    logging.shutdown()
    os._exit(EXIT_MUST_RESTART)


class AssignmentOwner(Protocol):
    """The loop's side of a rebalance, and the state that a poll depends on."""

    epoch: int
    rewind: bool
    committed: dict[TP, int]

    async def assigned(self, offsets: Mapping[TP, int], install: Callable[[], None]) -> None:
        """Take over a new assignment."""

    async def revoked(self) -> None:
        """Finish the transaction at work and give everything up."""


def _never_raises(callback: Callable[..., None]) -> Callable[..., None]:
    # An exception that leaves a confluent callback surfaces as SystemError or not at all.
    @functools.wraps(callback)
    def guarded(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except BaseException as error:
            logger.exception("%s failed", callback.__name__)
            end_process(f"{callback.__name__}: {error!r}")

    return guarded


def read_batch(consumer: Consumer, settings: TransportSettings) -> list[Message]:
    """What there is, up to the records, the time and (but for a slice) the bytes of a batch."""
    first = consumer.poll(0.25)
    if first is None:
        return []
    messages, room_bytes = [first], settings.batch_bytes - len(first)
    end = time.monotonic() + settings.linger_seconds
    while room_bytes > 0 and (missing := settings.batch_records - len(messages)) > 0:
        left = end - time.monotonic()
        if left <= 0:
            break
        more = consumer.consume(min(missing, _SLICE_RECORDS), left)
        messages += more
        room_bytes -= sum(map(len, more))
    return messages


class Poller:
    """Owns the Consumer; its public coroutines run their work on the poll thread."""

    def __init__(self, settings: TransportSettings, owner: AssignmentOwner) -> None:
        self._settings = settings
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, f"poll-{settings.group}")
        self._consumer = Consumer(settings.consumer_properties())
        self._positions = Positions(self._consumer)
        self._moved_at = time.monotonic()
        self._closing = False
        self._paused: list[TopicPartition] = []
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

    async def close(self) -> None:
        """Leave Kafka; no transaction may be open."""
        self._closing = True
        await self._run(self._consumer.close)
        self._thread.shutdown(wait=False)

    def _run(self, call: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return self._loop.run_in_executor(self._thread, call, *arguments)

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_LOOP_SECONDS)

    def _subscribe(self, topics: list[str]) -> None:
        self._consumer.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke)

    def _poll(self) -> Batch | None:
        # Taken before anything is read: an abort or rebalance after this line makes the batch stale.
        epoch = self._owner.epoch
        if self._paused:
            self._consumer.resume(self._paused)
            self._paused = []
        if self._owner.rewind:
            self._owner.rewind = False
            self._rewind()
        messages = read_batch(self._consumer, self._settings)
        self.group_metadata = self._consumer.consumer_group_metadata()
        if epoch != self._owner.epoch:
            self._owner.rewind = True
            return None
        return self._as_batch(epoch, messages)

    def _as_batch(self, epoch: int, messages: list[Message]) -> Batch | None:
        records = _by_partition(self._positions.note(messages))
        gaps = self._positions.gaps()
        now = time.monotonic()
        if records or gaps:
            self._moved_at = now
        elif now < self._moved_at + _MARKERS_SECONDS:
            return None
        next_offsets = self._positions.to_commit()
        return Batch(epoch, records, next_offsets, gaps) if next_offsets else None

    def _serve(self) -> None:
        if not self._paused:
            self._paused = [TopicPartition(*tp) for tp in self._owner.committed]
            if self._paused:
                self._consumer.pause(self._paused)
        message = self._consumer.poll(0.25)
        self.group_metadata = self._consumer.consumer_group_metadata()
        for other in self._positions.note([message] if message is not None else []):
            if other.error() is None:
                self._owner.rewind = True  # it came before the pause took hold: read it again later
            else:
                _check(other)

    def _rewind(self) -> None:
        # `seek` of librdkafka needs partitions that are being fetched; `assign` does not.
        self._positions.assign(self._owner.committed)

    @_never_raises
    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # With read_committed this waits for pending transactions on the group's offsets (KIP-447, RequireStable).
        offsets = _stable_offsets(consumer, partitions)
        install = self._settings.listener.rebuild(list(offsets))
        self._positions.assign(offsets)
        # librdkafka keeps a pause over rebalances: what was paused by a former assignment would never be read again.
        consumer.resume([TopicPartition(*tp) for tp in offsets])
        self._paused = []
        self.group_metadata = consumer.consumer_group_metadata()
        self._on_loop(self._owner.assigned(offsets, install))

    @_never_raises
    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._paused = []
        if not self._closing:
            self._on_loop(self._owner.revoked())


def _stable_offsets(consumer: Consumer, partitions: list[TopicPartition]) -> dict[TP, int]:
    if not partitions:
        return {}
    while True:
        try:
            committed = consumer.committed(partitions, timeout=_COMMITTED_SECONDS)
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            logger.warning("committed offsets are asked for again: %s", error.args[0].str())
            continue
        for partition in committed:
            if partition.error is not None:
                raise KafkaException(partition.error)
        # From 0 where nothing was committed: what retention has taken by then is a gap like any other.
        return {TP(partition.topic, partition.partition): max(0, partition.offset) for partition in committed}


def _check(message: Message) -> bool:
    """True for a record; a fatal error of the consumer comes only as a message."""
    error = message.error()
    if error is None:
        return True
    # The error of a message does not say that it is fatal; its code does.
    if error.fatal() or error.code() == KafkaError._FATAL:
        end_process(f"{error.name()}: {error.str()}; if another process runs with this slot, give each its own")
    logger.warning("while polling: %s", error.str())
    return False


def _by_partition(messages: list[Message]) -> dict[TP, list[Message]]:
    records: dict[TP, list[Message]] = {}
    last: tuple[str | None, int | None] | None = None
    current: list[Message] = []
    for message in messages:
        if message.error() is not None and not _check(message):
            continue
        place = (message.topic(), message.partition())
        if place != last:
            last = place
            current = records.setdefault(TP(*place), [])
        current.append(message)
    return records
