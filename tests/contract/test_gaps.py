"""What retention takes from a group that has not read it, at the transport: recorded once, with the offsets, and reading goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.config.models import Config
from pipeline.kafka.client import client_properties
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.transport import poller
from pipeline.kafka.transport.app import batch_agent, build_app
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.consumer import TransactionalConsumer
from pipeline.kafka.transport.gaps import Gap
from pipeline.kafka.transport.settings import TransportSettings
from tests.roles import delete_below

pytestmark = pytest.mark.anyio


@dataclass
class Reader:
    """A group that reads the deliveries topic of the connection a, and notes records and gaps once they are committed."""

    config: Config
    topic: str
    records: list[tuple[int, int]] = field(default_factory=list)
    gaps: list[tuple[int, Gap]] = field(default_factory=list)
    fail: int = 0
    free: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def group(self) -> str:
        return f"{self.config.kafka.topic_prefix}reader"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TransactionalConsumer]:
        app = build_app(TransportSettings(self.config.kafka, self.group, wait_for_agents=False))
        batch_agent(app, "read", self.topic, self._read)
        async with app:
            assert isinstance(app.consumer, TransactionalConsumer)
            yield app.consumer

    async def _read(self, batch: Batch, consumer: BatchConsumer) -> None:
        await self.free.wait()
        async with consumer.transaction(batch) as outputs:
            outputs.after_commit(lambda: self._note(batch))
            if self.fail:
                self.fail -= 1
                raise RuntimeError("seeded")

    def _note(self, batch: Batch) -> None:
        self.records += [(tp.partition, r.offset() or 0) for tp, part in batch.records.items() for r in part]
        self.gaps += [(tp.partition, gap) for tp, gap in batch.gaps.items()]

    def committed(self) -> dict[int, int]:
        asking = Consumer(client_properties(self.config.kafka, group__id=self.group))
        found = asking.committed([TopicPartition(self.topic, partition) for partition in range(4)], timeout=30)
        asking.close()
        return {partition.partition: partition.offset for partition in found}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(condition):
                await asyncio.sleep(0.1)


@pytest.fixture
def reader(make_config: Callable[..., Config]) -> Reader:
    config = make_config({"a": {"destination": "Kafka"}})
    ensure_topics(config)
    made = Reader(config, TopicNames(config.kafka.topic_prefix).deliveries("a"))
    made.free.set()
    return made


def put(reader: Reader, partition: int, records: int, transactions: int = 0) -> None:
    if not transactions:
        producer = Producer({"bootstrap.servers": reader.config.kafka.servers})
        for number in range(records):
            producer.produce(reader.topic, b"%d" % number, partition=partition)
        assert producer.flush(30) == 0
        return
    writer = TransactionalProducer(reader.config.kafka, f"{reader.topic}-writer")
    writer.initialise()
    for _ in range(transactions):
        writer.begin()
        for number in range(records):
            writer.produce(reader.topic, b"%d" % number, partition=partition)
        writer.commit_alone()


async def test_one_emptied_partition_and_one_that_was_cut_of_several_while_nothing_was_ever_committed(
    reader: Reader,
) -> None:
    for partition in range(3):
        put(reader, partition, 10)
    delete_below(reader.config, reader.topic, {0: 10, 1: 4})
    async with reader.running():
        await reader.until(lambda: len(reader.records) == 16 and len(reader.gaps) == 2)
    assert sorted(reader.gaps) == [(0, Gap(0, 10, True)), (1, Gap(0, 4))]
    assert sorted(reader.records) == [(1, offset) for offset in range(4, 10)] + [(2, offset) for offset in range(10)]
    assert reader.committed() == {0: 10, 1: 10, 2: 10, 3: -1001}


async def test_all_partitions_emptied_between_two_runs_count_once(reader: Reader) -> None:
    for partition in range(4):
        put(reader, partition, 10)
    async with reader.running():
        await reader.until(lambda: len(reader.records) == 40)
    for partition in range(4):
        put(reader, partition, 5)
    delete_below(reader.config, reader.topic, dict.fromkeys(range(4), 15))
    for _ in range(2):
        async with reader.running():
            await reader.until(lambda: set(reader.committed().values()) == {15})
    assert sorted(reader.gaps) == [(partition, Gap(10, 15, True)) for partition in range(4)]


async def test_a_gap_in_an_aborted_transaction_counts_once_and_before_the_records_behind_it(reader: Reader) -> None:
    put(reader, 0, 10)
    delete_below(reader.config, reader.topic, {0: 6})
    reader.fail = 2
    async with reader.running():
        await reader.until(lambda: len(reader.records) == 4)
    assert reader.gaps == [(0, Gap(0, 6))] and reader.records == [(0, offset) for offset in range(6, 10)]


async def test_what_a_busy_agent_holds_is_no_gap_and_what_was_taken_behind_it_is(reader: Reader) -> None:
    """The agent holds one batch and another one waits; the partitions are paused, and retention takes one whole."""
    reader.free.clear()
    async with reader.running() as consumer:
        for expected in (1, 2):
            put(reader, 0, 5)
            await reader.until(partial(lambda expected: consumer.committer.assignment.in_flight >= expected, expected))
        await reader.until(lambda: consumer._poller is not None and bool(consumer._poller._paused))
        put(reader, 0, 90)
        delete_below(reader.config, reader.topic, {0: 100})
        reader.free.set()
        await reader.until(lambda: reader.committed()[0] == 100)
    held = len(reader.records)
    assert held >= 5 and reader.records == [(0, offset) for offset in range(held)]
    assert reader.gaps == [(0, Gap(held, 100, True))]


async def test_commit_markers_are_no_gap_while_a_reader_runs(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "_MARKERS_SECONDS", 0.0)
    put(reader, 0, 3, transactions=4)
    async with reader.running():
        # Behind the marker of the last transaction, although no record follows.
        await reader.until(lambda: reader.committed()[0] == 16)
    assert len(reader.records) == 12
    delete_below(reader.config, reader.topic, {0: 16})
    put(reader, 0, 1)
    async with reader.running():
        await reader.until(lambda: len(reader.records) == 13)
    assert reader.gaps == []


async def test_a_topic_made_anew_is_read_from_its_beginning_and_nothing_counts_as_taken(reader: Reader) -> None:
    put(reader, 0, 10)
    async with reader.running():
        await reader.until(lambda: len(reader.records) == 10)
    asking = Consumer(client_properties(reader.config.kafka, group__id=reader.group))
    asking.commit(offsets=[TopicPartition(reader.topic, 0, 500)], asynchronous=False)
    asking.close()
    async with reader.running():
        await reader.until(lambda: len(reader.records) == 20)
    assert reader.gaps == [] and reader.committed()[0] == 10
