"""Tests of the intake's producer on a fake librdkafka: a full queue and repeated fatal errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaException

from pipeline.config.models import KafkaConfig
from pipeline.intake.answers import UNAVAILABLE, refusal
from pipeline.kafka import producer as module
from pipeline.kafka.producer import AcknowledgingProducer

pytestmark = pytest.mark.anyio


class Fatal:
    """The error in the exception that confluent_kafka's `poll` raises once after a fatal error."""

    def fatal(self) -> bool:
        return True

    def str(self) -> str:
        return "Local: Fatal error"


class FakeProducer:
    """A producer that keeps its records until a fatal error, which fails all of them, as in librdkafka."""

    made: list[FakeProducer]
    room = 1000

    def __init__(self, properties: dict[str, Any]) -> None:
        assert properties["error_cb"]  # or confluent_kafka would only log it
        self.error: Fatal | None = None
        self.waiting: list[Callable[[Any, Any], None]] = []
        self.outcome: object | None = ...
        FakeProducer.made.append(self)

    def produce(self, *_: Any, on_delivery: Callable[[Any, Any], None], **__: Any) -> None:
        if len(self.waiting) >= self.room:
            raise BufferError("Local: Queue full")
        self.waiting.append(on_delivery)

    def poll(self, _: float) -> int:
        time.sleep(0.001)
        error, self.error = self.error, None
        if error is not None:
            raise KafkaException(error)
        if self.outcome is not ...:
            reported, self.waiting = self.waiting, []
            for report in reported:
                report(self.outcome, None)
        return 0

    def __len__(self) -> int:
        return len(self.waiting)


@pytest.fixture(autouse=True)
def fake_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeProducer.made = []
    monkeypatch.setattr(module, "Producer", FakeProducer)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_each_fatal_error_makes_a_new_producer_and_no_report_is_lost() -> None:
    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[tuple[int, bool]] = []
    for number in range(4):
        assert producer.send("t", b"v", b"k", [], lambda stored, number=number: reports.append((number, stored)))
        dying = FakeProducer.made[-1]
        assert len(dying) == 1  # the newest producer has the record
        dying.error = Fatal()
        await until(lambda number=number: len(FakeProducer.made) == number + 2)
        dying.outcome = Fatal()  # its records are reported after it was replaced
    await until(lambda: len(reports) == 4)
    assert sorted(reports) == [(number, False) for number in range(4)]
    assert producer.send("t", b"v", b"k", [], lambda stored: reports.append((4, stored)))
    FakeProducer.made[-1].outcome = None
    await producer.close(10)
    assert reports[-1] == (4, True)


async def test_the_reason_of_failed_records_is_logged_but_not_for_each_record(caplog: pytest.LogCaptureFixture) -> None:
    module._failures.filters[0]._shown.clear()  # type: ignore[union-attr]
    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[bool] = []
    FakeProducer.made[-1].outcome = Fatal()
    for number in range(9):
        assert producer.send("t", b"v", b"k", [], reports.append)
        await until(lambda number=number: len(reports) > number)
    await producer.close(10)
    assert reports == [False] * 9
    assert [record.getMessage() for record in caplog.records] == ["records not acknowledged: error=Local: Fatal error"]


async def test_kafka_counts_as_failing_after_consecutive_failures_until_a_success_or_for_some_seconds() -> None:
    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[bool] = []

    async def settle(outcome: object) -> None:
        FakeProducer.made[-1].outcome = outcome
        before = len(reports)
        assert producer.send("t", b"v", b"k", [], reports.append)
        await until(lambda: len(reports) > before)

    for _ in range(2):
        await settle(Fatal())
    assert producer.unacknowledged(time.monotonic()) is None, "one or two records may fail because of their content"
    await settle(Fatal())
    assert producer.unacknowledged(time.monotonic()) == "the last 3 records were not acknowledged"
    assert producer.unacknowledged(time.monotonic() + 11) is None, "without hits, no success would reset it"
    await settle(None)
    assert producer.unacknowledged(time.monotonic()) is None
    await producer.close(10)


async def test_a_full_queue_is_returned_at_once_and_never_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeProducer, "room", 1)
    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[bool] = []
    assert producer.send("t", b"v", b"k", [], reports.append)
    assert not producer.send("t", b"v", b"k", [], reports.append)
    FakeProducer.made[-1].outcome = None
    await producer.close(10)
    assert reports == [True]


async def test_an_exception_in_one_report_does_not_prevent_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(_: bool) -> None:
        raise ValueError("secret")

    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[bool] = []
    for report in (reports.append, faulty, reports.append):
        assert producer.send("t", b"v", b"k", [], report)
    FakeProducer.made[-1].outcome = None
    await until(lambda: len(reports) == 2)
    await producer.close(10)
    assert "error=ValueError file=" in caplog.text
    assert "secret" not in caplog.text


async def test_retry_after_of_the_refusal_spreads_the_senders_over_one_to_five_seconds() -> None:
    waits = set()
    for _ in range(300):
        head = refusal(UNAVAILABLE, keep_alive=True).split(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 503 ")
        (wait,) = [line for line in head.split(b"\r\n") if line.startswith(b"Retry-After: ")]
        waits.add(int(wait.removeprefix(b"Retry-After: ")))
    assert waits == {1, 2, 3, 4, 5}
