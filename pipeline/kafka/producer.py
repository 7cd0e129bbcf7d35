"""The producer of the intake: acknowledged by all replicas, or reported as unknown.

`confluent_kafka.AIOProducer` has no headers in batches and is slow, so: one Producer with a thread that polls it, one wake-up
of the loop for all the delivery reports of a poll. Polling from the loop every 2 ms instead costs the same under load and more
without, and answers later (bench/README.md).
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
_failures.addFilter(RepeatFilter())  # while Kafka is away each poll would say so

ACKNOWLEDGE_MS = 2500
_POLL_SECONDS = 0.1
_FAILURES = 3
"""Fewer records than this may fail by a fault of their own."""
_FAILED_SECONDS = 10.0
"""How long failed records count against Kafka."""
Report = Callable[[bool], None]
"""Called on the loop: True when Kafka has the record, False when it is unknown."""
Reports = list[tuple[Report, bool]]


def settle(reports: Iterable[tuple[Report, bool]]) -> None:
    """Tell each; a fault behind one of them keeps no other sender from its answer."""
    for report, stored in reports:
        try:
            report(stored)
        except Exception as error:
            # The text of an exception may hold what nobody may read; its place does not.
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s in %s:%s when a record was reported", type(error).__name__, *place[:2])


class _Life:
    """One Producer and the thread that polls it. What it tells is called on the loop."""

    def __init__(
        self, properties: dict[str, Any], settle: Callable[[Reports], None], failed: Callable[[_Life], None]
    ) -> None:
        # With an `error_cb`, confluent_kafka raises a fatal error from `poll`; without one it would only be logged.
        self.producer = Producer({**properties, "error_cb": lambda error: None})
        self._loop = asyncio.get_running_loop()
        self._settle, self._failed = settle, failed
        self._reports: Reports = []  # of the thread, as the next, since only its polls call `delivered`
        self._error: KafkaError | None = None
        self._replaced = self._closed = False
        self._thread = threading.Thread(target=self._poll, name="delivery reports", daemon=True)
        self._thread.start()

    def delivered(self, report: Report, error: KafkaError | None, _: Any) -> None:
        """For `on_delivery`."""
        self._reports.append((report, error is None))
        self._error = error or self._error

    @property
    def alive(self) -> bool:
        """May it still report?"""
        return self._thread.is_alive()

    def replace(self) -> None:
        """End when all of its records are reported."""
        self._replaced = True

    def close(self) -> None:
        """End within a tenth of a second, whatever is under way."""
        self._closed = True
        self._thread.join()

    def _poll(self) -> None:
        while not self._closed and not (self._replaced and not len(self.producer)):
            try:
                self.producer.poll(_POLL_SECONDS)
            except KafkaException as error:
                if error.args[0].fatal():
                    self._loop.call_soon_threadsafe(self._failed, self)
            if self._reports:
                reports, self._reports = self._reports, []
                self._loop.call_soon_threadsafe(self._settle, reports)
            if self._error is not None:
                _failures.warning("records were not acknowledged: %s", self._error.str())
                self._error = None


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
        self._waiting = 0
        self._failures = 0  # since the last acknowledged record
        self._failed_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._acknowledging = StuckWatch()  # of the loop
        self._answering = StuckWatch()
        self._answering_lock = threading.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._life = self._new_life()
        self._former: list[_Life] = []

    def reaches_kafka(self) -> bool:
        """Does a broker answer within a second? Blocks; may be called from any thread."""
        found = reaches_kafka(self._life.producer)
        self._answered(found)
        return found

    def unreachable(self, topic: str) -> str | None:
        """Why nothing can be written to `topic` now; None when it can. Blocks; any thread may call."""
        problem = unreachable(self._life.producer, topic)
        self._answered(problem is None)
        return problem

    def unacknowledged(self, now: float) -> str | None:
        """Why records that Kafka's metadata lets through would be refused; `now` is a reading of time.monotonic().

        None soon after the last failure: an intake that gets no hits any more must find out whether Kafka takes them again.
        """
        if self._failures < _FAILURES or now - self._failed_at > _FAILED_SECONDS:
            return None
        return f"the last {self._failures} records were not acknowledged"

    def send(self, topic: str, value: bytes, key: bytes, headers: Headers, report: Report) -> bool:
        """Queue one record; False when the queue is full, and `report` will not be called."""
        life = self._life
        try:
            life.producer.produce(topic, value, key, headers=headers, on_delivery=partial(life.delivered, report))
        except BufferError:
            return False
        except KafkaException as error:
            logger.error("a record could not be queued: %s", error.args[0].str())
            return False
        self._waiting += 1
        if self._waiting == 1:
            self._idle.clear()
        return True

    async def close(self, timeout_seconds: float) -> None:
        """Wait for the acknowledgements that are under way, at most so long."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        except TimeoutError:
            logger.warning("%d records were not acknowledged at the end; their senders have no answer", self._waiting)
        for life in (*self._former, self._life):
            await asyncio.to_thread(life.close)

    def _new_life(self) -> _Life:
        return _Life(self._properties, self._settle, self._failed)

    def _settle(self, reports: Reports) -> None:
        self._waiting -= len(reports)
        stored = any(stored for _, stored in reports)
        if stored:
            self._failures = 0
        else:
            self._failures += len(reports)
            self._failed_at = time.monotonic()
        if self._acknowledging.observe(stored, time.monotonic()):
            self._renew(f"no record was acknowledged for {STUCK_SECONDS:.0f} s or more")
        settle(reports)
        if not self._waiting:
            self._idle.set()

    def _answered(self, works: bool) -> None:
        """Note whether a metadata request was answered; any thread may call."""
        with self._answering_lock:
            is_stuck = self._answering.observe(works, time.monotonic())
        if is_stuck:
            reason = f"no metadata request was answered for {STUCK_SECONDS:.0f} s or more"
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._renew, reason)

    def _failed(self, life: _Life) -> None:
        if life is self._life:
            self._renew("a fatal error")

    def _renew(self, reason: str) -> None:
        """Send through a new librdkafka producer from now on; the old one ends once its records are reported."""
        logger.error("producer replaced: reason=%s", reason)
        life = self._life
        life.replace()
        self._former = [former for former in self._former if former.alive] + [life]
        self._life = self._new_life()
