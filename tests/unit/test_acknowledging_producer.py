"""The producer of the intake by itself: a full queue, and fatal errors one after the other, on a librdkafka of our own making."""

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
    """What is in the exception that confluent_kafka's `poll` raises once when a producer can't go on."""

    def fatal(self) -> bool:
        return True

    def str(self) -> str:
        return "Local: Fatal error"


class Lifeless:
    """A producer that keeps what it is given until it dies, which fails all of it, as librdkafka does."""

    made: list[Lifeless]
    room = 1000

    def __init__(self, properties: dict[str, Any]) -> None:
        assert properties["error_cb"]  # or confluent_kafka would only log it
        self.error: Fatal | None = None
        self.waiting: list[Callable[[Any, Any], None]] = []
        self.outcome: object | None = ...
        Lifeless.made.append(self)

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
def lifeless(monkeypatch: pytest.MonkeyPatch) -> None:
    Lifeless.made = []
    monkeypatch.setattr(module, "Producer", Lifeless)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_fatal_errors_in_a_row_each_make_a_new_producer_and_lose_no_report() -> None:
    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[tuple[int, bool]] = []
    for life in range(4):
        assert producer.send("t", b"v", b"k", [], lambda stored, life=life: reports.append((life, stored)))
        dying = Lifeless.made[-1]
        assert len(dying) == 1  # the new one has it, not a former one
        dying.error = Fatal()
        await until(lambda life=life: len(Lifeless.made) == life + 2)
        dying.outcome = Fatal()  # its records are reported after it was replaced
    await until(lambda: len(reports) == 4)
    assert sorted(reports) == [(life, False) for life in range(4)]
    assert producer.send("t", b"v", b"k", [], lambda stored: reports.append((4, stored)))
    Lifeless.made[-1].outcome = None
    await producer.close(10)
    assert reports[-1] == (4, True)


async def test_why_records_are_not_acknowledged_is_told_but_not_of_each(caplog: pytest.LogCaptureFixture) -> None:
    module._failures.filters[0]._shown.clear()  # type: ignore[union-attr]
    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[bool] = []
    Lifeless.made[-1].outcome = Fatal()
    for number in range(9):
        assert producer.send("t", b"v", b"k", [], reports.append)
        await until(lambda number=number: len(reports) > number)
    await producer.close(10)
    assert reports == [False] * 9
    assert [record.getMessage() for record in caplog.records] == ["records were not acknowledged: Local: Fatal error"]


async def test_records_that_fail_in_a_row_count_against_kafka_until_one_succeeds_or_some_seconds_have_passed() -> None:
    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[bool] = []

    async def settle(outcome: object) -> None:
        Lifeless.made[-1].outcome = outcome
        before = len(reports)
        assert producer.send("t", b"v", b"k", [], reports.append)
        await until(lambda: len(reports) > before)

    for _ in range(2):
        await settle(Fatal())
    assert producer.unacknowledged(time.monotonic()) is None, "one or two may fail by a fault of their own"
    await settle(Fatal())
    assert producer.unacknowledged(time.monotonic()) == "the last 3 records were not acknowledged"
    assert producer.unacknowledged(time.monotonic() + 11) is None, "without hits nothing else would end it"
    await settle(None)
    assert producer.unacknowledged(time.monotonic()) is None
    await producer.close(10)


async def test_a_full_queue_is_said_at_once_and_its_report_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lifeless, "room", 1)
    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[bool] = []
    assert producer.send("t", b"v", b"k", [], reports.append)
    assert not producer.send("t", b"v", b"k", [], reports.append)
    Lifeless.made[-1].outcome = None
    await producer.close(10)
    assert reports == [True]


async def test_a_fault_at_one_report_keeps_no_other_from_its_own(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(_: bool) -> None:
        raise ValueError("secret")

    producer = AcknowledgingProducer(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
    reports: list[bool] = []
    for report in (reports.append, faulty, reports.append):
        assert producer.send("t", b"v", b"k", [], report)
    Lifeless.made[-1].outcome = None
    await until(lambda: len(reports) == 2)
    await producer.close(10)
    assert "ValueError in " in caplog.text
    assert "secret" not in caplog.text


async def test_the_answer_for_it_spreads_the_senders_over_one_to_five_seconds() -> None:
    waits = set()
    for _ in range(300):
        head = refusal(UNAVAILABLE, keep_alive=True).split(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 503 ")
        (wait,) = [line for line in head.split(b"\r\n") if line.startswith(b"Retry-After: ")]
        waits.add(int(wait.removeprefix(b"Retry-After: ")))
    assert waits == {1, 2, 3, 4, 5}
