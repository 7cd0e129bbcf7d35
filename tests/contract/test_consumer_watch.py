"""Whether records wait for a consumer, asked of a real Kafka: markers, aborted records and what retention took do not count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from faust.types import TP

from pipeline.config.models import Config
from pipeline.kafka.client import client_properties
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transport.app import batch_agent, build_app
from pipeline.kafka.transport.batch import Batch, BatchConsumer, Stateless
from pipeline.kafka.transport.settings import TransportSettings
from pipeline.kafka.transport.watch import ConsumerWatch, MemberListener, has_unread
from pipeline.telemetry.members import Member
from tests.roles import delete_below, put, wait_until


@dataclass
class Reader:
    """A consumer of one partition that has committed nothing, and a producer of transactions."""

    config: Config
    consumer: Consumer
    producer: Producer
    place: TP

    def write(self, commit: bool) -> None:
        self.producer.begin_transaction()
        for _ in range(3):
            self.producer.produce(self.place.topic, b"value", partition=0)
        assert self.producer.flush(30) == 0
        if commit:
            self.producer.commit_transaction(30)
        else:
            self.producer.abort_transaction(30)

    @property
    def unread(self) -> bool:
        return has_unread(self.consumer, {self.place: 0})

    def read_all(self) -> None:
        wait_until(lambda: self.consumer.poll(0.2) is None and not self.unread, "the end of the partition", 30)


@pytest.fixture
def reader(make_config: Callable[..., Config]) -> Iterator[Reader]:
    config = make_config()
    ensure_topics(config)
    place = TP(TopicNames(config.kafka.topic_prefix).hits_raw, 0)
    settings = TransportSettings(config.kafka, f"{config.kafka.topic_prefix}watched")
    consumer = Consumer(settings.consumer_properties())
    consumer.assign([TopicPartition(*place, 0)])
    producer = Producer(client_properties(config.kafka, transactional__id=f"{config.kafka.topic_prefix}writes"))
    producer.init_transactions(30)
    yield Reader(config, consumer, producer, place)
    consumer.close()


def test_committed_records_wait_until_they_are_read_and_markers_do_not_count(reader: Reader) -> None:
    assert not reader.unread
    reader.write(commit=True)
    wait_until(lambda: reader.unread, "the marker of the commit")
    reader.read_all()
    reader.write(commit=False)
    reader.read_all()  # only aborted records and two markers lie behind the last one


def test_a_partition_that_stays_paused_shows(reader: Reader) -> None:
    reader.consumer.pause([TopicPartition(*reader.place)])
    reader.write(commit=True)
    assert reader.consumer.poll(1.0) is None
    wait_until(lambda: reader.unread, "the marker of the commit")


def test_what_is_in_an_open_transaction_can_not_be_read_yet(reader: Reader) -> None:
    reader.producer.begin_transaction()
    reader.producer.produce(reader.place.topic, b"value", partition=0)
    assert reader.producer.flush(30) == 0
    assert not reader.unread
    reader.producer.commit_transaction(30)
    wait_until(lambda: reader.unread, "the marker of the commit")


def test_what_retention_took_is_not_unread(reader: Reader) -> None:
    reader.write(commit=True)
    wait_until(lambda: reader.unread, "the marker of the commit")
    topic, partition = reader.place
    delete_below(reader.config, topic, {partition: -1})
    wait_until(lambda: not reader.unread, "the emptied partition")


@pytest.mark.anyio
async def test_a_running_app_tells_of_its_assignment_its_batches_and_its_broker(
    make_config: Callable[..., Config],
) -> None:
    config = make_config()
    ensure_topics(config)
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    member, watch, free = Member("hits-raw", 0.0), ConsumerWatch(), asyncio.Event()

    async def handle(batch: Batch, consumer: BatchConsumer) -> None:
        await free.wait()
        async with consumer.transaction(batch):
            pass

    settings = TransportSettings(
        config.kafka, f"{config.kafka.topic_prefix}app", listener=MemberListener(Stateless(), member), watch=watch
    )
    app = build_app(settings)
    batch_agent(app, "wait", topic, handle)
    assert watch.consumer is None and [c.state.label for c in member.conditions(0.0)] == ["joining"]
    async with asyncio.timeout(60):
        async with app:
            while list(member.conditions(0.0)):
                await asyncio.sleep(0.05)
            assert watch.consumer is not None
            assert await asyncio.to_thread(watch.consumer.unreachable, topic) is None
            assert not watch.has_waiting
            await asyncio.to_thread(put, config, b"1")
            while not watch.has_waiting:
                await asyncio.sleep(0.05)
            free.set()
            while watch.has_waiting:
                await asyncio.sleep(0.05)
        assert watch.consumer is None
