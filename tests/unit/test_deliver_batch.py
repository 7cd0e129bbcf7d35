"""A hit whose content makes a batch fail becomes a dead letter; all others are delivered once, without a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import pytest
from confluent_kafka import Message
from faust.types import TP

from pipeline.codec.avro import Framing
from pipeline.codec.ledger_entry import decode_ledger_entry
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.delivery.deliver_batch import deliver_batch
from pipeline.delivery.deliverers import Received, RoutedHits
from pipeline.delivery.lanes import Guard
from pipeline.destination import Delivered, Outcome, Rejected
from pipeline.errors import ContentError
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transport.batch import Batch, BatchConsumer, Outputs
from pipeline.kafka.transport.batch_limit import BatchLimit
from pipeline.kafka.transport.faulty import FaultyRecords
from pipeline.operations.ledger_sums import sum_ledger
from tests.guard import FakeGuard
from tests.unit.test_route_batch import FakeProducer

pytestmark = pytest.mark.anyio

_TP = TP("deliveries-crm", 0)
_TIME = "2026-11-24T10:15:30.123Z"


def hit(number: int, door: str = "secret") -> Message:
    times = f'"receivedAt":"{_TIME}","sentAt":"{_TIME}"'
    value = f'{{"hitId":"{number}","projectId":"shop","door":"{door}",{times},"event":{{}},"context":{{}}}}'
    return Message(topic=_TP.topic, partition=0, offset=number, key=b"u", value=value.encode())


class FailingDeliverer:
    """Delivers all hits, but raises an unexpected error for one of them."""

    def __init__(self, failing_offset: int) -> None:
        self.sent: list[int] = []
        self._failing_offset = failing_offset

    async def deliver(self, received: Mapping[TP, Sequence[Received]], guard: Guard) -> dict[TP, list[Outcome | None]]:
        (part,) = received.values()
        outcomes: list[Outcome | None] = []
        for record, read in part:
            offset = record.offset() or 0
            if not isinstance(read, Rejected) and offset == self._failing_offset:
                raise AssertionError("unexpected")
            outcomes.append(read if isinstance(read, Rejected) else Delivered())
        self.sent += [record.offset() or 0 for record, read in part if not isinstance(read, Rejected)]
        return {_TP: outcomes}


class World:
    """A partition of a deliveries topic and the worker that delivers it."""

    def __init__(self, records: int) -> None:
        self.records = [hit(number) for number in range(records)]
        self.offset = self.batches = 0
        self.limit = BatchLimit(2_000)
        self.faulty = FaultyRecords()
        self.written: list[tuple[str, bytes, dict[str, Any]]] = []

    async def run(self, deliverer: Any) -> None:
        """Deliver until all records are committed."""
        hits = RoutedHits(Framing(ROUTED_HIT_SCHEMA))
        while self.offset < len(self.records):
            self.batches += 1
            batch = Batch.of(0, {_TP: self.records[self.offset :][: self.limit.records]})
            assert batch is not None
            consumer = cast(BatchConsumer, self)
            await deliver_batch("crm", TopicNames(""), hits, deliverer, batch, consumer, True, self.faulty)

    @contextmanager
    def guard(self, batch: Batch) -> Iterator[Guard]:
        """See BatchConsumer."""
        yield FakeGuard()

    @asynccontextmanager
    async def transaction(self, batch: Batch) -> AsyncIterator[Outputs]:
        """See BatchConsumer."""
        outputs = Outputs(FakeProducer())
        try:
            yield outputs
        except BaseException:
            outputs.run_aborted()
            raise
        self.offset = batch.next_offsets[_TP]
        self.limit.committed(0.01)
        self.written += cast(FakeProducer, outputs.producer).queued
        outputs.run_committed()

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """See BatchConsumer."""
        self.limit.content_failed(len(batch))

    def failed(self, batch: Batch, error: Exception) -> None:
        """See BatchConsumer."""
        raise error


@pytest.mark.parametrize("at", [0, 77, 199])
async def test_unexpected_error_of_one_hit_makes_only_that_hit_a_dead_letter(at: int) -> None:
    world, deliverer = World(200), FailingDeliverer(at)
    await world.run(deliverer)
    assert sorted(deliverer.sent) == [number for number in range(200) if number != at]
    (dead_letter,) = (headers for topic, _, headers in world.written if topic == "dead-letters")
    assert (dead_letter["reason"], dead_letter["origin-offset"], dead_letter["project"]) == (
        b"delivery_failed",
        b"%d" % at,
        b"shop",
    )
    assert b"AssertionError: unexpected" in dead_letter["message"]
    sums = sum_ledger(
        [decode_ledger_entry(value) for topic, value, _ in world.written if topic == "ledger"]
    ).connections
    assert (sums["crm"].delivered, sums["crm"].dead) == (199, 1)
    assert world.batches < 40 and not world.faulty


async def test_temporary_error_makes_no_hit_a_dead_letter() -> None:
    class Unavailable(FailingDeliverer):
        async def deliver(self, *_: Any) -> Any:
            raise ConnectionError("away")

    world = World(3)
    with pytest.raises(ConnectionError):
        await world.run(Unavailable(1))
    assert world.limit.records is None and not world.faulty


async def test_dead_letter_keeps_the_door_of_its_hit() -> None:
    class Refusing:
        async def deliver(
            self, received: Mapping[TP, Sequence[Received]], guard: Guard
        ) -> dict[TP, list[Outcome | None]]:
            return {tp: [Rejected("http_422", "no") for _ in part] for tp, part in received.items()}

    world = World(0)
    world.records = [hit(0, "public"), hit(1)]
    await world.run(Refusing())
    dead_letters = [headers for topic, _, headers in world.written if topic == "dead-letters"]
    assert [dead_letter.get("door") for dead_letter in dead_letters] == [b"public", None]
