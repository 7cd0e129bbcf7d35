"""Watermarks, committed offsets, members and first records of several topics at once, on a real Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.client import client_properties
from pipeline.kafka.first_records import FirstRecord, first_records
from pipeline.kafka.offsets import Span
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.watermarks import ClusterReader, Watermarks
from tests.roles import delete_below, wait_until


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    made = make_config()
    ensure_topics(made)
    return made


def test_topics_that_aged_and_open_transactions(config: Config) -> None:
    names = TopicNames(config.kafka.topic_prefix)
    a, b = names.deliveries("a"), names.deliveries("b")
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    for number in range(10):
        producer.produce(a, b"x", partition=0, timestamp=1000 + number)
    assert producer.flush(30) == 0
    delete_below(config, a, {0: 4})
    writer = TransactionalProducer(config.kafka, f"{a}-writer")
    writer.initialise()
    writer.begin()
    writer.produce(b, b"taken back", partition=1)
    writer._calls.instance.producer.flush(10)
    writer.abort()
    writer.begin()
    writer.produce(b, b"open", partition=2)
    writer._calls.instance.producer.flush(10)
    cluster = ClusterReader(config.kafka)
    found = cluster.watermarks([a, b, f"{a}-none"])
    assert {place: marks for place, marks in found.items() if marks.end} == {
        (a, 0): Watermarks(4, 10, 10),
        (b, 1): Watermarks(0, 2, 2),
        (b, 2): Watermarks(0, 0, 1),
    }
    assert len(found) == 8
    ranges = {place: Span(marks.low, marks.end) for place, marks in found.items()}
    assert first_records(config.kafka, ranges) == {
        (a, 0): FirstRecord(4, 1004),
        (b, 1): FirstRecord(2, None),
        (b, 2): FirstRecord(0, None),
    }
    assert first_records(config.kafka, {(a, 0): Span(0, 4), (b, 1): Span(0, 0)}) == {(a, 0): FirstRecord(4, None)}
    writer.commit_alone()


def test_first_records_of_partitions_with_long_backlogs(config: Config) -> None:
    """A broker fills its answer from the first partitions that have records; the last of many must get its turn."""
    names = TopicNames(config.kafka.topic_prefix)
    places = [(names.deliveries(connection), number) for connection in ("a", "b") for number in range(4)]
    producer = Producer(
        {"bootstrap.servers": config.kafka.servers, "batch.num.messages": 1, "enable.idempotence": True}
    )
    began_ms = round(time.time() * 1000)  # older ones are taken by the broker's retention
    for number in range(40):
        for topic, partition in places:
            producer.produce(topic, bytes(60_000), partition=partition, timestamp=began_ms + number)
    assert producer.flush(60) == 0
    found = first_records(config.kafka, dict.fromkeys(places, Span(0, 40)))
    assert found == dict.fromkeys(places, FirstRecord(0, began_ms))


def test_groups(config: Config) -> None:
    topic = TopicNames(config.kafka.topic_prefix).deliveries("a")
    reading, none = f"{topic}-reading", f"{topic}-none"
    consumer = Consumer(client_properties(config.kafka, group__id=reading))
    consumer.subscribe([topic])
    wait_until(lambda: consumer.poll(0.1) is None and consumer.assignment(), "the assignment")
    consumer.commit(offsets=[TopicPartition(topic, 3, 7)], asynchronous=False)
    cluster = ClusterReader(config.kafka)
    assert cluster.committed({reading: topic, none: topic}) == {reading: {(topic, 3): 7}, none: {}}
    assert cluster.without_members([reading, none]) == {none} and cluster.without_members([]) == set()
    consumer.close()
    wait_until(lambda: cluster.without_members([reading, none]) == {reading, none}, "the member has left")


def test_a_kafka_that_does_not_answer(config: Config) -> None:
    nowhere = config.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})
    with pytest.raises(BrokerUnavailable, match="watermarks of the topics"):
        ClusterReader(nowhere, 1.0).watermarks(["a"])
