"""The producer of the intake: each record is acknowledged by all in-sync replicas, or reported as unknown.

`confluent_kafka.AIOProducer` is slow and has no headers in batches. So this module uses one Producer with a thread that
polls it, and wakes the loop once for all delivery reports of a poll. Polling from the loop every 2 ms costs the same under
load and more when idle, and reports later (bench/README.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from pipeline.codec.raw_record import Headers
from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import RepeatFilter, client_properties, reaches_kafka
from pipeline.kafka.reachability import unreachable
from pipeline.kafka.stuck import STUCK_SECONDS, StuckWatch

logger = logging.getLogger(__name__)
_failures = logging.getLogger(f"{__name__}.failures")
_failures.addFilter(RepeatFilter())  # during an outage each poll would log it

ACKNOWLEDGE_MS = 2500
_POLL_SECONDS = 0.1
_FAILURES = 3
"""Consecutive failed records before Kafka counts as failing; fewer may fail because of the records themselves."""
_FAILED_SECONDS = 10.0
"""How long after the last failure Kafka counts as failing."""
Report = Callable[[bool], None]
"""Called on the loop: True if Kafka has the record, False if that is unknown."""
Reports = list[tuple[Report, bool]]


def settle(reports: Iterable[tuple[Report, bool]]) -> None:
    """Call each report. An exception in one does not prevent the others."""
    for report, stored in reports:
        try:
            report(stored)
        except Exception as error:
            # The text of an exception may hold personal data; its place in the code does not.
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("delivery report failed: error=%s file=%s line=%d", type(error).__name__, *place[:2])


class _ProducerInstance:
    """One Producer and the thread that polls it. Calls `settle` and `failed` on the loop."""

    def __init__(
        self, properties: dict[str, Any], settle: Callable[[Reports], None], failed: Callable[[_ProducerInstance], None]
    ) -> None:
        # With an `error_cb`, confluent_kafka raises fatal errors from `poll`; without one it only logs them.
        self.producer = Producer({**properties, "error_cb": lambda error: None})
        self._loop = asyncio.get_running_loop()
        self._settle, self._failed = settle, failed
        # Only the poll thread uses these two, because `delivered` runs only inside `poll`.
        self._reports: Reports = []
        self._error: KafkaError | None = None
        self._is_replaced = self._is_closed = False
        self._thread = threading.Thread(target=self._poll, name="delivery reports", daemon=True)
        self._thread.start()

    def delivered(self, report: Report, error: KafkaError | None, _: Any) -> None:
        """Collect a delivery report; the callback for `on_delivery`."""
        self._reports.append((report, error is None))
        self._error = error or self._error

    @property
    def is_alive(self) -> bool:
        """True while it may still report."""
        return self._thread.is_alive()

    def replace(self) -> None:
        """End the thread once all queued records are reported."""
        self._is_replaced = True

    def close(self) -> None:
        """End the thread within 0.1 s, even with records in flight."""
        self._is_closed = True
        self._thread.join()

    def _poll(self) -> None:
        while not self._is_closed and not (self._is_replaced and not len(self.producer)):
            try:
                self.producer.poll(_POLL_SECONDS)
            except KafkaException as error:
                if error.args[0].fatal():
                    self._loop.call_soon_threadsafe(self._failed, self)
            if self._reports:
                reports, self._reports = self._reports, []
                self._loop.call_soon_threadsafe(self._settle, reports)
            if self._error is not None:
                _failures.warning("records not acknowledged: error=%s", self._error.str())
                self._error = None


class AcknowledgingProducer:
    """Sends records and reports each acknowledgement.

    Call it from the loop's thread, except for the methods that any thread may call.
    """

    def __init__(self, kafka: KafkaConfig) -> None:
        self._properties = client_properties(
            kafka,
            acks="all",
            enable__idempotence=True,
            compression__type="lz4",
            linger__ms=5,  # at 1 ms, librdkafka's thread needs 4 to 9 us more CPU per record
            message__timeout__ms=ACKNOWLEDGE_MS,
            queue__buffering__max__messages=100_000,
            queue__buffering__max__kbytes=262_144,
        )
        self._waiting = 0
        self._failures = 0  # since the last acknowledged record
        self._failed_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._acknowledgements = StuckWatch()  # used on the loop only
        self._metadata = StuckWatch()
        self._metadata_lock = threading.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._instance = self._new_instance()
        self._replaced: list[_ProducerInstance] = []

    def reaches_kafka(self) -> bool:
        """Return whether a broker responds within a second. Blocks; any thread may call it."""
        found = reaches_kafka(self._instance.producer)
        self._metadata_requested(found)
        return found

    def unreachable(self, topic: str) -> str | None:
        """Return why nothing can be written to `topic` now, or None. Blocks; any thread may call it."""
        problem = unreachable(self._instance.producer, topic)
        self._metadata_requested(problem is None)
        return problem

    def unacknowledged(self, now: float) -> str | None:
        """Return why Kafka counts as failing although its metadata look fine, or None. `now` is a value of time.monotonic().

        Returns None again some seconds after the last failure. Otherwise an intake that rejects hits would never send the
        record that shows whether Kafka works again.
        """
        if self._failures < _FAILURES or now - self._failed_at > _FAILED_SECONDS:
            return None
        return f"the last {self._failures} records were not acknowledged"

    def send(self, topic: str, value: bytes, key: bytes, headers: Headers, report: Report) -> bool:
        """Queue one record. Returns False if it cannot be queued; then `report` is not called."""
        instance = self._instance
        try:
            on_delivery = partial(instance.delivered, report)
            instance.producer.produce(topic, value, key, headers=headers, on_delivery=on_delivery)
        except BufferError:
            return False
        except KafkaException as error:
            logger.error("record not queued: error=%s", error.args[0].str())
            return False
        self._waiting += 1
        if self._waiting == 1:
            self._idle.clear()
        return True

    async def close(self, timeout_seconds: float) -> None:
        """Wait up to `timeout_seconds` for records in flight, then close the producer."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        except TimeoutError:
            logger.warning(
                "records not acknowledged before shutdown, their senders get no response: records=%d", self._waiting
            )
        for instance in (*self._replaced, self._instance):
            await asyncio.to_thread(instance.close)

    def _new_instance(self) -> _ProducerInstance:
        return _ProducerInstance(self._properties, self._settle, self._failed)

    def _settle(self, reports: Reports) -> None:
        self._waiting -= len(reports)
        stored = any(stored for _, stored in reports)
        if stored:
            self._failures = 0
        else:
            self._failures += len(reports)
            self._failed_at = time.monotonic()
        if self._acknowledgements.observe(stored, time.monotonic()):
            self._replace(f"no record was acknowledged for at least {STUCK_SECONDS:.0f} s")
        settle(reports)
        if not self._waiting:
            self._idle.set()

    def _metadata_requested(self, succeeded: bool) -> None:
        """Record the outcome of a metadata request; any thread may call it."""
        with self._metadata_lock:
            is_stuck = self._metadata.observe(succeeded, time.monotonic())
        if is_stuck:
            reason = f"no metadata request succeeded for at least {STUCK_SECONDS:.0f} s"
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._replace, reason)

    def _failed(self, instance: _ProducerInstance) -> None:
        if instance is self._instance:
            self._replace("fatal error")

    def _replace(self, reason: str) -> None:
        """Use a new librdkafka producer from now on. The old one ends once its records are reported."""
        logger.error("producer replaced: reason=%s", reason)
        self._instance.replace()
        self._replaced = [*(replaced for replaced in self._replaced if replaced.is_alive), self._instance]
        self._instance = self._new_instance()
