"""The producer of the intake: acknowledged by all replicas, or reported as unknown.

`confluent_kafka.AIOProducer` has no headers in batches and is slow (facts.md), so: one Producer, one poll thread, and one wake-up
of the loop per batch of delivery reports.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from pipeline.codec.raw_record import Headers
from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties, reaches_kafka

logger = logging.getLogger("hitrouter.kafka.producer")

ACKNOWLEDGE_MS = 2500
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
            linger__ms=1,
            message__timeout__ms=ACKNOWLEDGE_MS,
            queue__buffering__max__messages=100_000,
            queue__buffering__max__kbytes=262_144,
        )
        self._loop = asyncio.get_running_loop()
        self._reports: list[tuple[Report, bool]] = []
        self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = threading.Event()
        self._fatal = threading.Event()
        self._producer = self._new_producer()
        self._thread = threading.Thread(target=self._poll, name="delivery-reports", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """False while the producer is being replaced."""
        return not self._fatal.is_set()

    def reaches_kafka(self) -> bool:
        """Does a broker answer within a second? Blocks; may be called from any thread."""
        return reaches_kafka(self._producer)

    def send(self, topic: str, value: bytes, key: bytes, headers: Headers, report: Report) -> bool:
        """Queue one record; False when the queue is full, and `report` will not be called."""
        try:
            self._producer.produce(topic, value, key, headers=headers, on_delivery=_Delivery(self._reports, report))
        except BufferError:
            return False
        except KafkaException as error:
            logger.error("a record could not be queued: %s", error.args[0].str())
            self._note(error.args[0])
            return False
        self._waiting += 1
        self._idle.clear()
        return True

    async def close(self, timeout_seconds: float) -> None:
        """Wait for the acknowledgements that are under way, at most so long."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        except TimeoutError:
            logger.warning("%d records were not acknowledged at the end; their senders have no answer", self._waiting)
        self._closing.set()
        await asyncio.to_thread(self._thread.join)

    def _new_producer(self) -> Producer:
        return Producer({**self._properties, "error_cb": self._note})

    def _note(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal.set()

    def _poll(self) -> None:
        # Records of a replaced producer are still reported: it is polled until it is empty.
        former: list[Producer] = []
        while not self._closing.is_set():
            self._producer.poll(0.1)
            for producer in former:
                producer.poll(0)
            if self._reports:
                reports, self._reports[:] = list(self._reports), []
                self._loop.call_soon_threadsafe(self._settle, reports)
            if self._fatal.is_set():
                logger.error("the producer can't go on; a new one takes its place")
                former = [producer for producer in former if len(producer)] + [self._producer]
                self._producer = self._new_producer()
                self._fatal.clear()

    def _settle(self, reports: list[tuple[Report, bool]]) -> None:
        self._waiting -= len(reports)
        for report, stored in reports:
            report(stored)
        if not self._waiting:
            self._idle.set()


class _Delivery:
    """One record's delivery callback; runs in the poll thread."""

    __slots__ = ("_report", "_reports")

    def __init__(self, reports: list[tuple[Report, bool]], report: Report) -> None:
        self._reports = reports
        self._report = report

    def __call__(self, error: KafkaError | None, message: Any) -> None:
        self._reports.append((self._report, error is None))
