"""Spilled hits reach Kafka in the end, whatever fails meanwhile; tested without Kafka."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.intake.spill import SpillingStore, SpillLog, store
from pipeline.kafka.producer import AcknowledgingProducer, Report
from pipeline.stages.accept import Accepted

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024


class Kafka:
    """A fake producer; the test decides the result of each record."""

    def __init__(self) -> None:
        self.there = False
        self.room = 1000
        self.sent: list[bytes] = []
        self.waiting: list[Report] = []

    def reaches_kafka(self) -> bool:
        return self.there

    def send(self, _topic: str, value: bytes, _key: bytes, _headers: Any, report: Report) -> bool:
        if len(self.waiting) >= self.room:
            return False
        self.sent.append(value)
        self.waiting.append(report)
        return True

    def settle(self, stored: bool) -> None:
        waiting, self.waiting = self.waiting, []
        for report in waiting:
            report(stored)


class Spilling:
    """A spilling store with spilled hits in its folder."""

    def __init__(self, folder: Path) -> None:
        self.kafka = Kafka()
        self.log = SpillLog(folder, MIB)
        self.store = SpillingStore(cast(AcknowledgingProducer, self.kafka), "t", self.log)
        self.answers: list[bool] = []

    async def spill(self, *values: bytes) -> None:
        """Spill hits into a separate segment."""
        before = len(self.answers)
        room, self.kafka.room = self.kafka.room, 0
        for value in values:
            assert self.store.store(Accepted(b"k", value, [], "shop"), self.answers.append)
        await until(lambda: len(self.answers) == before + len(values))
        self.log.seal()
        self.kafka.room = room

    def lose(self) -> None:
        """Make room on the disk."""
        path = self.log.oldest()
        assert path is not None
        path.unlink()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def spilling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Spilling]:
    monkeypatch.setattr(store, "_PROBE_SECONDS", 0.02)
    monkeypatch.setattr(store, "_CHUNK_SECONDS", 0.01)
    made = Spilling(tmp_path)
    yield made
    await made.store.close(5)


async def test_a_replay_that_fails_while_the_queue_is_full_starts_again(spilling: Spilling) -> None:
    kafka = spilling.kafka
    await spilling.spill(b"1", b"2")
    kafka.room, kafka.there = 1, True
    await until(lambda: kafka.sent == [b"1"])  # and 2 waits for room
    kafka.there = False
    kafka.room = 0
    kafka.settle(False)
    kafka.room, kafka.there = 1000, True
    await until(lambda: kafka.sent[1:] == [b"1", b"2"])
    kafka.settle(True)
    await until(lambda: spilling.log.size == 0)


@pytest.mark.parametrize("trap", ["moved away", "of another version"])
async def test_a_segment_that_cannot_be_replayed_does_not_block_the_others(
    spilling: Spilling, trap: str, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = spilling.kafka
    if trap == "moved away":
        await spilling.spill(b"gone")
        spilling.lose()
    else:
        spilling.log.append([b"\xff"])
        spilling.log.seal()
    await spilling.spill(b"later")
    kafka.there = True
    await until(lambda: kafka.sent == [b"later"])
    kafka.settle(True)
    await until(lambda: spilling.log.size == 0)
    assert "after a restart" in caplog.text


async def test_a_failing_log_is_reported_once(
    spilling: Spilling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for life in range(1, 3):
        with monkeypatch.context() as patch:
            patch.setattr(spilling.log, "append", full)
            for _ in range(5):
                await spilling.spill(b"refused")
        assert caplog.text.count("No space left") == life
        await spilling.spill(b"stored")
    assert spilling.answers == [*[False] * 5, True] * 2


async def test_a_failed_write_makes_the_log_unready_until_a_timeout_or_a_success(
    spilling: Spilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert spilling.store.no_room(time.monotonic()) is None
    with monkeypatch.context() as patch:
        patch.setattr(spilling.log, "append", full)
        await spilling.spill(b"refused")
    why = spilling.store.no_room(time.monotonic())
    assert why is not None and "No space left on device" in why
    assert spilling.store.no_room(time.monotonic() + 11) is None, "without hits nothing else would end it"
    await spilling.spill(b"stored")
    assert spilling.store.no_room(time.monotonic()) is None


async def test_a_log_that_has_reached_its_size_has_no_room(spilling: Spilling) -> None:
    await spilling.spill(b"x" * (MIB - 100_000))
    why = spilling.store.no_room(time.monotonic())
    assert why is not None and "`intake.spill.max_bytes`" in why and str(spilling.store.waiting_bytes) in why
