"""The transport by itself, in this process: one suite in memory, on librdkafka's mock cluster and on a real Kafka.

The mock cluster knows no isolation (its readers see what was aborted) and forgets offsets that were committed in a
transaction, so there a repeat is allowed where the others must show none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.config.models import Config
from pipeline.errors import WorkerMustRestart
from pipeline.kafka.client import client_properties
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.transport.app import BatchHandler, batch_agent, build_app
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.consumer import TransactionalConsumer
from pipeline.kafka.transport.memory import MemoryConsumer, MemoryTopics
from pipeline.kafka.transport.settings import TransportSettings
from pipeline.operations.read_topic import read_topic
from tests.roles import put

pytestmark = pytest.mark.anyio
SOURCE, TARGET = "hits-raw", "deliveries-a"


class World(Protocol):
    """One implementation of the seam."""

    def put(self, *values: bytes) -> None:
        """Records of SOURCE."""

    def worker(self, group: str, handle: BatchHandler) -> AbstractAsyncContextManager[None]:
        """A running worker that hands the batches of SOURCE to `handle`."""

    def copied(self) -> list[bytes]:
        """What readers see in TARGET, sorted."""


class MemoryWorld:
    def __init__(self) -> None:
        self.topics = MemoryTopics()

    def put(self, *values: bytes) -> None:
        for value in values:
            self.topics.produce(SOURCE, value, value)

    @asynccontextmanager
    async def worker(self, group: str, handle: BatchHandler) -> AsyncIterator[None]:
        await MemoryConsumer(self.topics, group, SOURCE).drain(handle)
        yield

    def copied(self) -> list[bytes]:
        return sorted(value or b"" for value in self.topics.values(TARGET))


class KafkaWorld:
    """On real Kafka, or on anything that speaks its protocol."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.names = TopicNames(config.kafka.topic_prefix)

    def put(self, *values: bytes) -> None:
        put(self.config, *values)

    @asynccontextmanager
    async def worker(self, group: str, handle: BatchHandler) -> AsyncIterator[None]:
        app = build_app(TransportSettings(self.config.kafka, f"{self.names.prefix}{group}"))
        batch_agent(app, "copy", self.names.hits_raw, handle)
        async with app:
            yield

    def copied(self) -> list[bytes]:
        return sorted(record.value() or b"" for record in read_topic(self.config.kafka, self.names.deliveries("a")))


class MockWorld(KafkaWorld):
    """librdkafka's mock cluster: four partitions per topic, made by the first touch."""

    def put(self, *values: bytes) -> None:
        producer = Producer(client_properties(self.config.kafka))
        for value in values:
            producer.produce(self.names.hits_raw, value, value)
        assert producer.flush(10) == 0

    def copied(self) -> list[bytes]:
        topic = self.names.deliveries("a")
        consumer = Consumer(client_properties(self.config.kafka, group__id="reads", enable__partition__eof=True))
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(4)])
        values: list[bytes] = []
        ended = 0
        while ended < 4:
            for message in consumer.consume(100, 0.2):
                if message.error() is None:
                    values.append(message.value() or b"")
                else:
                    ended += 1
        consumer.close()
        return sorted(values)


@pytest.fixture(scope="module")
def mock_cluster() -> Iterator[str]:
    owner = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "unused", "log_level": 3})
    broker = owner.list_topics(timeout=10).brokers[1]
    yield f"{broker.host}:{broker.port}"
    owner.flush(0)


@pytest.fixture(params=["memory", "mock", "kafka"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        return MemoryWorld()
    make_config = request.getfixturevalue("make_config")
    if request.param == "kafka":
        config = make_config()
        ensure_topics(config)
        return KafkaWorld(config)
    config = make_config()
    return MockWorld(
        config.model_copy(
            update={
                "kafka": config.kafka.model_copy(update={"bootstrap_servers": request.getfixturevalue("mock_cluster")})
            }
        )
    )


@dataclass
class Copier:
    """An agent that copies SOURCE to TARGET; the first `fail` batches fail in the middle."""

    world: World
    group: str
    fail: int = 0
    events: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.world.worker(self.group, self.copy):
            yield

    async def copy(self, batch: Batch, consumer: BatchConsumer) -> None:
        async with consumer.transaction(batch) as outputs:
            outputs.after_commit(lambda: self.events.append("committed"))
            outputs.after_abort(lambda: self.events.append("aborted"))
            for tp, records in batch.records.items():
                target = tp.topic.replace(SOURCE, TARGET)
                for record in records:
                    outputs.produce(target, record.value(), record.key())
            if self.fail:
                self.fail -= 1
                raise RuntimeError("seeded")

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while "committed" not in self.events or len(await asyncio.to_thread(self.world.copied)) < count:
                await asyncio.sleep(0.2)


def numbered(count: int, name: str = "hit") -> list[bytes]:
    return sorted(f"{name} {number:03}".encode() for number in range(count))


def seen(world: World) -> list[bytes]:
    copied = world.copied()
    return sorted(set(copied)) if isinstance(world, MockWorld) else copied


async def test_every_record_is_copied_once(world: World) -> None:
    world.put(*numbered(300))
    copier = Copier(world, "copy")
    async with copier.running():
        await copier.until(300)
    assert world.copied() == numbered(300)
    assert set(copier.events) == {"committed"}


async def test_a_failed_batch_is_aborted_and_comes_again(world: World) -> None:
    world.put(*numbered(30))
    copier = Copier(world, "failing", fail=2)
    async with copier.running():
        await copier.until(30)
    assert copier.events[:2] == ["aborted", "aborted"]
    assert seen(world) == numbered(30)


async def test_a_second_life_goes_on_where_the_first_ended(world: World) -> None:
    for number in range(2):
        world.put(*numbered(5, f"life {number}"))
        copier = Copier(world, "lives")
        async with copier.running():
            await copier.until(5 * (number + 1))
    assert seen(world) == numbered(5, "life 0") + numbered(5, "life 1")


async def test_groups_do_not_disturb_each_other(world: World) -> None:
    world.put(*numbered(10))
    copiers = [Copier(world, "first"), Copier(world, "second")]
    async with copiers[0].running(), copiers[1].running():
        await copiers[0].until(20)
    assert world.copied() == sorted(numbered(10) * 2)


async def test_partitions_that_were_paused_for_a_busy_agent_are_read_again_after_a_rebalance(
    make_config: Callable[..., Config],
) -> None:
    config = make_config()
    ensure_topics(config)
    world = KafkaWorld(config)
    copier, free = Copier(world, "busy"), asyncio.Event()

    async def copy_when_free(batch: Batch, consumer: BatchConsumer) -> None:
        await free.wait()
        await copier.copy(batch, consumer)

    group = f"{config.kafka.topic_prefix}busy"
    app = build_app(TransportSettings(config.kafka, group, wait_for_agents=False))
    batch_agent(app, "copy", world.names.hits_raw, copy_when_free)
    async with app, asyncio.timeout(60):
        consumer = app.consumer
        assert isinstance(consumer, TransactionalConsumer)
        for name in ("first", "second"):  # one at the agent, one behind it: there is no room for a third
            world.put(*numbered(5, name))
            while consumer.committer.assignment.in_flight < (1 if name == "first" else 2):
                await asyncio.sleep(0.05)
        while consumer._poller is None or not consumer._poller._paused:
            await asyncio.sleep(0.05)
        other = Consumer(TransportSettings(config.kafka, group).consumer_properties())
        other.subscribe([world.names.hits_raw])
        while not await asyncio.to_thread(lambda: other.poll(0.1) is None and other.assignment()):
            pass
        await asyncio.to_thread(other.close)
        while len(consumer.committed) < config.kafka.partitions:
            await asyncio.sleep(0.05)
        free.set()
        world.put(*numbered(5, "third"))
        await copier.until(15)
    assert world.copied() == sorted(numbered(5, "first") + numbered(5, "second") + numbered(5, "third"))


async def test_the_third_failure_in_memory_is_raised() -> None:
    world = MemoryWorld()
    world.put(b"poison")
    with pytest.raises(RuntimeError, match="seeded"):
        async with Copier(world, "poisoned", fail=3).running():
            raise AssertionError("never ran")
    assert world.copied() == []


async def test_an_aborted_transaction_shows_nothing(make_config: Callable[..., Config]) -> None:
    config = make_config()
    ensure_topics(config)
    topic = TopicNames(config.kafka.topic_prefix).deliveries("a")
    producer = TransactionalProducer(config.kafka, f"{config.kafka.topic_prefix}alone")
    producer.initialise()
    producer.begin()
    producer.produce(topic, b"taken back")
    producer.abort()
    producer.begin()
    producer.produce(topic, b"kept")
    producer.commit_alone()
    assert [record.value() for record in read_topic(config.kafka, topic)] == [b"kept"]


async def test_the_next_instance_on_a_slot_fences_the_previous_one(make_config: Callable[..., Config]) -> None:
    config = make_config()
    ensure_topics(config)
    topic = TopicNames(config.kafka.topic_prefix).deliveries("a")
    slot = f"{config.kafka.topic_prefix}slot"
    zombie, next_instance = TransactionalProducer(config.kafka, slot), TransactionalProducer(config.kafka, slot)
    zombie.initialise()
    zombie.begin()
    zombie.produce(topic, b"of the zombie")
    next_instance.initialise()
    with pytest.raises(WorkerMustRestart, match="another process took over the slot"):
        zombie.commit_alone()
    assert list(read_topic(config.kafka, topic)) == []
