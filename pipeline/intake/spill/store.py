"""The store for `on_kafka_failure: spill`: Kafka, or the spill log while Kafka is unavailable; spilled hits are replayed later.

A hit may be in both: if its acknowledgement was late, it was spilled and reached Kafka, too. Its hitId was fixed before, so
deduplication counts it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from pathlib import Path

import msgspec

from pipeline.intake.spill.log import SpillFull, SpillLog
from pipeline.kafka.producer import AcknowledgingProducer, Report, settle
from pipeline.stages.accept import Accepted
from pipeline.telemetry import HITS_SPILLED, SPILL_BYTES

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 1.0
_WAITING_BYTES = 64 * 1024 * 1024
_LEAST_RATE = 200.0
_CHUNK_SECONDS = 0.1
_LEAST_ROOM_BYTES = 131_072
"""The log counts as full below this room; one hit takes up to half of it."""
_REFUSED_SECONDS = 10.0
"""How long a failed write makes the intake unready. Without new hits no write would show that there is room again."""

Waiting = tuple[bytes, Report]


class SpillingStore:
    """Stores hits. Call from the loop only; a separate thread writes and fsyncs many hits at a time (group commit)."""

    def __init__(self, producer: AcknowledgingProducer, topic: str, log: SpillLog) -> None:
        self._producer = producer
        self._topic = topic
        self._log = log
        self._log_lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._kafka_answers = True
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._writing = threading.Condition()
        self._closing = False
        self._refuses_because: str | None = None
        self._refused_at = 0.0
        self._live = 0
        self._live_rate = 0.0
        self._thread = threading.Thread(target=self._write, name="spill", daemon=True)
        self._thread.start()
        self._replaying = asyncio.create_task(self._replay())

    def store(self, hit: Accepted, report: Report) -> bool:
        """Return False if neither Kafka nor the log has room; else `report` is called later."""
        self._live += 1
        if not self._kafka_answers:
            return self._spill(hit, report)

        def reported(stored: bool) -> None:
            if stored:
                report(True)
                return
            self._begin_spilling("a hit was not acknowledged in time")
            if not self._spill(hit, report):
                report(False)

        if self._producer.send(self._topic, hit.value, hit.key, hit.headers, reported):
            return True
        self._begin_spilling("the producer's queue is full")
        return self._spill(hit, report)

    @property
    def waiting_bytes(self) -> int:
        """Bytes on disk that are not in Kafka yet. Any thread may call it."""
        return self._log.size

    def no_room(self, now: float) -> str | None:
        """Return why the log accepts no hits, or None. `now` is from time.monotonic(); any thread may call it."""
        if self._log.room_bytes < _LEAST_ROOM_BYTES:
            return f"{self._log.size} bytes are waiting, the limit is `intake.spill.max_bytes`"
        return self._refuses_because if now - self._refused_at < _REFUSED_SECONDS else None

    async def close(self, timeout_seconds: float) -> None:
        """Write waiting hits, then stop."""
        self._replaying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._replaying
        with self._writing:
            self._closing = True
            self._writing.notify()
        await asyncio.to_thread(self._thread.join, timeout_seconds)
        self._log.close()

    # To the log ------------------------------------------------------------------------------------------------------

    def _spill(self, hit: Accepted, report: Report) -> bool:
        value = msgspec.msgpack.encode((hit.key, hit.value, hit.headers))
        with self._writing:
            if self._closing or self._waiting_bytes > _WAITING_BYTES:
                return False
            self._waiting.append((value, report))
            self._waiting_bytes += len(value)
            self._writing.notify()
        return True

    def _write(self) -> None:
        while True:
            with self._writing:
                while not self._waiting and not self._closing:
                    self._writing.wait()
                if not self._waiting:
                    return
                batch = list(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
            stored = False
            try:
                with self._log_lock:
                    self._log.append([value for value, _ in batch])
                stored = True
                HITS_SPILLED.inc(len(batch))
                SPILL_BYTES.set(self._log.size)
                self._refuses_because = None
            except SpillFull as error:
                self._note_failure(f"spill log is full: {error}", "the spill log is full")
            except OSError as error:
                why = f"the spill log cannot be written: {error.strerror}; free disk space, hits are refused until then"
                self._note_failure(why, why)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_settle, batch, stored)

    def _note_failure(self, message: str, why: str) -> None:
        """Log a failure once until a write succeeds again, not for each hit."""
        self._refused_at = time.monotonic()
        if why != self._refuses_because:
            logger.error("hits are refused: reason=%s", message)
            self._refuses_because = why

    # From the log ----------------------------------------------------------------------------------------------------

    def _begin_spilling(self, why: str) -> None:
        if self._kafka_answers:
            logger.warning("Kafka unavailable, hits are spilled to this machine's disk: reason=%s", why)
            self._kafka_answers = False

    async def _replay(self) -> None:
        measured_at = time.monotonic()
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            now = time.monotonic()
            self._live_rate = self._live / (now - measured_at)
            self._live, measured_at = 0, now
            if not self._kafka_answers:
                if not await asyncio.to_thread(self._producer.reaches_kafka):
                    continue
                logger.info("Kafka available again, spilled hits are replayed")
                self._kafka_answers = True
            path = await asyncio.to_thread(self._sealed)
            if path is None:
                continue
            try:
                await self._replay_segment(path)
            except (OSError, msgspec.DecodeError) as error:
                # An operator may have moved the file; it must not block the other segments.
                logger.error("segment not replayed, will retry after a restart: segment=%s error=%s", path, error)
                with self._log_lock:
                    self._log.drop(path)

    def _sealed(self) -> Path | None:
        with self._log_lock:
            if self._log.size and self._log.oldest() is None:
                self._log.seal()
            return self._log.oldest()

    def _remove(self, path: Path) -> None:
        with self._log_lock:
            self._log.remove(path)

    async def _replay_segment(self, path: Path) -> None:
        """Send a segment to Kafka in order, at most twice as fast as new hits arrive, so that these are not delayed."""
        rate = max(_LEAST_RATE, 2 * self._live_rate)
        pending = 0
        failed = False
        settled = asyncio.Event()

        def reported(stored: bool) -> None:
            nonlocal pending, failed
            pending -= 1
            failed |= not stored
            settled.set()

        count = 0
        values = await asyncio.to_thread(lambda: list(self._log.read(path)))
        size = max(1, int(rate * _CHUNK_SECONDS))
        for chunk in (values[start : start + size] for start in range(0, len(values), size)):
            for value in chunk:
                key, body, headers = _decoder.decode(value)
                while not failed and not self._producer.send(self._topic, body, key, [*headers], reported):
                    await asyncio.sleep(_CHUNK_SECONDS)
                if failed:
                    break
                pending += 1
                count += 1
            await asyncio.sleep(_CHUNK_SECONDS)
            if failed:
                break
        while pending > 0:
            settled.clear()
            await settled.wait()
        if failed:
            self._begin_spilling("a replayed hit was not acknowledged in time")
            return
        await asyncio.to_thread(self._remove, path)
        SPILL_BYTES.set(self._log.size)
        logger.info("spilled hits replayed: segment=%s hits=%d", path.name, count)


_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes, list[tuple[str, bytes]]])


def _settle(batch: list[Waiting], stored: bool) -> None:
    settle((report, stored) for _, report in batch)
