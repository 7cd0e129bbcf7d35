"""The producer of the intake: acknowledged by all replicas, or reported as unknown.

`confluent_kafka.AIOProducer` has no headers in batches and is slow (facts.md), so: one Producer, whose delivery reports the loop
itself takes, many at a time, every two milliseconds while records are under way. A thread that polls would fight the loop for
the GIL once per report: confluent_kafka takes it anew for each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from pipeline.codec.raw_record import Headers
from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties, reaches_kafka

logger = logging.getLogger("hitrouter.kafka.producer")

ACKNOWLEDGE_MS = 2500
_BUSY_SECONDS = 0.002
_IDLE_SECONDS = 0.1
Report = Callable[[bool], None]
"""Called on the loop: True when Kafka has the record, False when it is unknown."""


class AcknowledgingProducer:
    """Call from the loop's thread only."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._properties = client_properties(
            kafka,
            acks="all",
            enable__idempotence=True,
            compression__type="lz4",
            linger__ms=5,  # at 1 ms librdkafka's thread costs 4 to 9 us more per record
            message__timeout__ms=ACKNOWLEDGE_MS,
            queue__buffering__max__messages=100_000,
            queue__buffering__max__kbytes=262_144,
        )
        self._loop = asyncio.get_running_loop()
        self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._fatal = False
        self._former: list[Producer] = []  # replaced, but with records under way: polled until empty
        self._producer = self._new_producer()
        self._polling = self._loop.call_later(_IDLE_SECONDS, self._poll)
        self._busy = False

    @property
    def healthy(self) -> bool:
        """False while the producer is being replaced."""
        return not self._fatal

    def reaches_kafka(self) -> bool:
        """Does a broker answer within a second? Blocks; may be called from any thread."""
        return reaches_kafka(self._producer)

    def send(self, topic: str, value: bytes, key: bytes, headers: Headers, report: Report) -> bool:
        """Queue one record; False when the queue is full, and `report` will not be called."""
        try:
            self._producer.produce(topic, value, key, headers=headers, on_delivery=partial(self._delivered, report))
        except BufferError:
            return False
        except KafkaException as error:
            logger.error("a record could not be queued: %s", error.args[0].str())
            self._note(error.args[0])
            return False
        self._waiting += 1
        if not self._busy:
            self._busy = True
            self._idle.clear()
            self._polling.cancel()
            self._polling = self._loop.call_later(_BUSY_SECONDS, self._poll)
        return True

    async def close(self, timeout_seconds: float) -> None:
        """Wait for the acknowledgements that are under way, at most so long."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        except TimeoutError:
            logger.warning("%d records were not acknowledged at the end; their senders have no answer", self._waiting)
        self._polling.cancel()

    def _new_producer(self) -> Producer:
        # With an `error_cb`, confluent_kafka raises a fatal error from `poll`; without one it would only be logged.
        return Producer({**self._properties, "error_cb": lambda error: None})

    def _note(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = True

    def _poll(self) -> None:
        try:
            try:
                self._producer.poll(0)
            except KafkaException as error:
                self._note(error.args[0])
            if self._former:
                for producer in self._former:
                    with suppress(KafkaException):  # what ended it is known
                        producer.poll(0)
                self._former = [producer for producer in self._former if len(producer)]
            if self._fatal:
                logger.error("the producer can't go on; a new one takes its place")
                self._former.append(self._producer)
                self._producer = self._new_producer()
                self._fatal = False
        finally:
            self._busy = self._waiting > 0
            if not self._busy:
                self._idle.set()
            self._polling = self._loop.call_later(_BUSY_SECONDS if self._busy else _IDLE_SECONDS, self._poll)

    def _delivered(self, report: Report, error: KafkaError | None, _: Any) -> None:
        self._waiting -= 1
        report(error is None)
