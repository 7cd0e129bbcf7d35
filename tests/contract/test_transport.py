"""The transactional transport by itself, in this process, on a real Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from pipeline.config.models import Config
from pipeline.errors import TransactionAborted, WorkerMustRestart
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.transport import Batch, TransactionalConsumer, TransportSettings, batch_agent, build_app
from pipeline.operations.read_topic import read_topic
from tests.roles import hit, put

pytestmark = pytest.mark.anyio
Handle = Callable[[Batch, TransactionalConsumer], object]


class Copier:
    """An app that copies hits-raw to deliveries-a; the first `fail` batches fail in the middle."""

    def __init__(self, config: Config, group: str, fail: int = 0) -> None:
        self.names = TopicNames(config.kafka.topic_prefix)
        self.config = config
        self.fail = fail
        self.events: list[str] = []
        self.app = build_app(TransportSettings(config.kafka, f"{self.names.prefix}{group}"))
        batch_agent(self.app, "copy", self.names.hits_raw, self.copy)

    async def copy(self, batch: Batch, consumer: TransactionalConsumer) -> None:
        async with consumer.transaction(batch) as outputs:
            outputs.after_commit(lambda: self.events.append("committed"))
            outputs.after_abort(lambda: self.events.append("aborted"))
            for records in batch.records.values():
                for record in records:
                    outputs.produce(self.names.deliveries("a"), record.value(), record.key())
            if self.fail:
                self.fail -= 1
                raise RuntimeError("seeded")

    def copied(self) -> list[bytes]:
        topic = self.names.deliveries("a")
        return sorted(record.value() or b"" for record in read_topic(self.config.kafka, topic))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(await asyncio.to_thread(self.copied)) < count:
                await asyncio.sleep(0.2)


async def test_a_failed_batch_is_aborted_and_comes_again(make_config: Callable[..., Config]) -> None:
    config = make_config()
    ensure_topics(config)
    values = sorted(hit(str(number)) for number in range(30))
    put(config, *values)
    copier = Copier(config, "failing", fail=2)
    async with copier.app:
        await copier.until(30)
    assert copier.copied() == values
    assert copier.events[:2] == ["aborted", "aborted"]
    assert "committed" in copier.events


async def test_two_apps_in_one_process_do_not_disturb_each_other(make_config: Callable[..., Config]) -> None:
    first, second = make_config(), make_config()
    copiers = []
    for config in (first, second):
        ensure_topics(config)
        put(config, *(hit(str(number)) for number in range(10)))
        copiers.append(Copier(config, "copy"))
    async with copiers[0].app, copiers[1].app:
        for copier in copiers:
            await copier.until(10)
    assert [len(copier.copied()) for copier in copiers] == [10, 10]


async def test_a_second_life_goes_on_where_the_first_ended(make_config: Callable[..., Config]) -> None:
    config = make_config()
    ensure_topics(config)
    for number in range(2):
        put(config, hit(f"life {number}"))
        copier = Copier(config, "lives")
        async with copier.app:
            await copier.until(number + 1)
    assert copier.copied() == [hit("life 0"), hit("life 1")]


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
    producer._settle(producer._producer.commit_transaction, 10.0)
    assert [record.value() for record in read_topic(config.kafka, topic)] == [b"kept"]


async def test_a_successor_on_the_same_seat_fences_its_predecessor(make_config: Callable[..., Config]) -> None:
    config = make_config()
    ensure_topics(config)
    topic = TopicNames(config.kafka.topic_prefix).deliveries("a")
    seat = f"{config.kafka.topic_prefix}seat"
    zombie, successor = TransactionalProducer(config.kafka, seat), TransactionalProducer(config.kafka, seat)
    zombie.initialise()
    zombie.begin()
    zombie.produce(topic, b"of the zombie")
    successor.initialise()
    with pytest.raises((WorkerMustRestart, TransactionAborted)):
        zombie._settle(zombie._producer.commit_transaction, 10.0)
    assert list(read_topic(config.kafka, topic)) == []
