"""Tests that a hit whose content makes its batch fail becomes a dead letter, while the others are routed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from confluent_kafka import Message

from pipeline.codec.ledger_entry import LedgerEntry, decode_ledger_entry
from pipeline.delivery.deliver_batch import write_outcomes
from pipeline.delivery.deliverers import Received
from pipeline.destination import Rejected
from pipeline.errors import ContentError, RecordTooLarge, RegistryUnavailable
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transport.batch import Batch, BatchConsumer, Outputs
from pipeline.kafka.transport.batch_limit import BatchLimit
from pipeline.kafka.transport.faulty import FaultyRecords
from pipeline.operations.ledger_sums import sum_ledger
from pipeline.router import prepare
from pipeline.router.route_batch import route_batch
from pipeline.stages.classify import RawHit
from tests.faults.fuzz_route import fuzz_route
from tests.unit.test_prepare import _TP, Bench, Raw, fails_for, names

pytestmark = pytest.mark.anyio
_MOST_BYTES = 1_000


class FakeProducer:
    """Accepts records up to a size; `refuses` is a topic that accepts none."""

    def __init__(self, refuses: str = "") -> None:
        self.queued: list[tuple[str, bytes, dict[str, Any]]] = []
        self._refuses = refuses

    def produce(
        self, topic: str, value: bytes | None, key: Any = None, partition: int = -1, headers: Any = None, *_: Any
    ) -> None:
        held = sum(len(name) + len(text or b"") for name, text in headers or ())
        if len(value or b"") + len(key or b"") + held > _MOST_BYTES or topic == self._refuses:
            raise RecordTooLarge(topic)
        self.queued.append((topic, value or b"", dict(headers or ())))

    def produce_all(self, topic: str, records: Any, headers: Any = None) -> None:
        for value, key in records:
            self.produce(topic, value, key, headers=headers)


class World:
    """A partition of raw records and the worker that routes it."""

    def __init__(self, *hits: str, refuses: str = "", topic_takes: int = _MOST_BYTES) -> None:
        self.records = [Raw(name, number) for number, name in enumerate(hits)]
        self.preparer = Bench()._preparer
        self.offset = self.batches = 0
        self.limit = BatchLimit(2_000)
        self.faulty = FaultyRecords()
        self.written: list[tuple[str, bytes, dict[str, Any]]] = []
        self._refuses = refuses
        self._topic_takes = topic_takes
        """Maximum record size of deliveries-a; a topic may allow less than the producer, and rejects records only at the commit."""

    async def run(self) -> None:
        """Route until all records are committed."""
        while self.offset < len(self.records):
            self.batches += 1
            part = self.records[self.offset :][: self.limit.records]
            batch = Batch.of(0, {_TP: cast(list[Message], part)})
            assert batch is not None
            await route_batch(self.preparer, "ledger", batch, cast(BatchConsumer, self), self.faulty)

    @asynccontextmanager
    async def transaction(self, batch: Batch) -> AsyncIterator[Outputs]:
        """See BatchConsumer."""
        producer = FakeProducer(self._refuses)
        outputs = Outputs(producer)
        try:
            yield outputs
        except BaseException:
            outputs.run_aborted()
            raise
        if any(where == "deliveries-a" and len(value) > self._topic_takes for where, value, _ in producer.queued):
            outputs.run_aborted()
            outputs.run_refused(ContentError("MSG_SIZE_TOO_LARGE: ProduceRequest for deliveries-a [0] failed"))
            return
        self.offset = batch.next_offsets[_TP]
        self.limit.committed(0.01)
        self.written += producer.queued
        outputs.run_committed()

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """See BatchConsumer."""
        self.limit.content_failed(len(batch))

    def failed(self, batch: Batch, error: Exception) -> None:
        """See BatchConsumer."""
        raise error

    def values(self, topic: str) -> list[bytes]:
        return [value for where, value, _ in self.written if where == topic]

    def entries(self) -> list[LedgerEntry]:
        return [decode_ledger_entry(value) for value in self.values("ledger")]


def assert_one_dead(world: World, hits: list[str], at: int, reason: bytes) -> None:
    routed = world.values("deliveries-a")
    assert len(routed) == len(hits) - 1
    assert all(f'"hitId":"{name}"'.encode() in b"".join(routed) for name in hits if name != hits[at])
    (letter,) = (headers for topic, _, headers in world.written if topic == "dead-letters")
    assert (letter["reason"], letter["origin-offset"], letter["project"]) == (b"route_failed", b"%d" % at, b"shop")
    assert reason in letter["message"]
    ledger = sum_ledger(world.entries(), topic_only=["a", "b"])
    assert ledger.hits.adds_up and not ledger.problems
    assert (ledger.hits.received, ledger.hits.dead) == (len(hits), 1)


@pytest.mark.parametrize("at", [0, 77, 199])
async def test_an_unexpected_error_dead_letters_one_hit(
    at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hits = names(200)
    original = prepare.id_of

    class Unforeseen(Exception):
        pass

    def fails(raw: RawHit) -> bytes:
        if raw.hit_id == hits[at]:
            raise Unforeseen("nobody thought of it")
        return original(raw)

    monkeypatch.setattr(prepare, "id_of", fails)
    world = World(*hits)
    await world.run()
    assert_one_dead(world, hits, at, b"Unforeseen: nobody thought of it")
    assert world.batches < 40 and not world.faulty
    assert f"topic=hits-raw partition=0 offset={at}" in caplog.text


async def test_a_record_that_is_too_large_dead_letters_one_hit() -> None:
    hits = names(200)
    world = World(*hits)
    large = world.records[99]
    value = large.value()
    large.value = lambda: value[:-1] + b', "x": "' + b"x" * _MOST_BYTES + b'"}'  # type: ignore[method-assign]
    world.records[98].headers = lambda: [("project", b"unknown")]  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.kafka.dead_letter_record._KEPT_BYTES", 100)
        await world.run()
    letters = {
        headers["origin-offset"]: (value, headers) for topic, value, headers in world.written if topic == "dead-letters"
    }
    assert set(letters) == {b"98", b"99"}
    cut, headers = letters[b"99"]
    assert len(cut) == 100 and headers["value-bytes"] == str(len(large.value()))
    assert (headers["reason"], headers["stage"]) == (b"route_failed", b"route")
    assert len(world.values("deliveries-a")) == 198
    assert sum_ledger(world.entries(), topic_only=["a", "b"]).hits.adds_up


async def test_a_record_rejected_at_the_commit_dead_letters_one_hit() -> None:
    hits = names(200)
    world = World(*hits, topic_takes=600)
    large = world.records[99]
    value = large.value()
    large.value = lambda: value[:-1] + b', "x": "' + b"x" * 500 + b'"}'  # type: ignore[method-assign]
    await world.run()
    assert_one_dead(world, hits, 99, b"MSG_SIZE_TOO_LARGE")
    assert world.batches < 40 and not world.faulty


@pytest.mark.parametrize("error", [ConnectionError("away"), RegistryUnavailable("away"), MemoryError()])
async def test_a_temporary_error_dead_letters_no_hit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(prepare, "classify_raw", away)
    world = World(*names(3))
    with pytest.raises(type(error)):
        await world.run()
    assert world.limit.records is None and not world.faulty
    monkeypatch.undo()
    await world.run()
    assert len(world.values("deliveries-a")) == 3


async def test_an_error_that_a_dead_letter_does_not_fix_is_a_failure_of_the_batch() -> None:
    """For example, if the ledger topic rejects all records, the process ends after three failures."""
    world = World(*names(2), refuses="ledger")
    with pytest.raises(ContentError, match="ledger"):
        await world.run()
    assert not world.written


async def test_an_error_per_hit_needs_no_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    hits = names(20)
    monkeypatch.setattr(prepare, "classify_raw", fails_for(hits[5], prepare.classify_raw))
    world = World(*hits)
    await world.run()
    assert world.batches == 1


class Smaller:
    """A consumer that only reads batches again."""

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """See BatchConsumer."""


def test_the_positions_of_faulty_records_are_bounded() -> None:
    faulty = FaultyRecords()
    for number in range(3_000):
        batch = Batch.of(0, {_TP: cast(list[Message], [Raw("n", number)])})
        assert batch is not None
        faulty.isolate(batch, cast(BatchConsumer, Smaller()), ContentError("x"))
    assert len(faulty) == 1_000 and (_TP, 2_999) in faulty and (_TP, 0) not in faulty


def test_a_dead_letter_of_a_delivery_that_is_too_large_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its headers add to a record that may already have the maximum size."""
    monkeypatch.setattr("pipeline.kafka.dead_letter_record._KEPT_BYTES", 100)
    producer, rejected = FakeProducer(), Rejected("not_storable", "é" * 80)
    record = Message(topic="deliveries-c", partition=0, offset=7, key=b"u", value=b"v" * 900)
    received = [Received(record, rejected)]
    write_outcomes(Outputs(producer), TopicNames(""), "c", _TP, received, [rejected], 8)
    letter, entry = producer.queued
    assert letter[0] == "dead-letters" and len(letter[1]) == 100
    assert letter[2]["value-bytes"] == "900" and letter[2]["origin-offset"] == b"7"
    assert decode_ledger_entry(entry[1]).counts.total() == 1


def test_no_hostile_batch_ends_a_worker() -> None:
    """The long form is `python -m tests.faults.prove --fuzz-route 10000`."""
    found = fuzz_route(150)
    assert found.batches == 150 and found.found["batches halved"] and found.found["dead letters cut"]
