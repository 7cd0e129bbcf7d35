"""Reading to the end of topics that have aged, on a real Kafka: records taken by retention, commit markers, open transactions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from pipeline.codec.seen_block import as_hashes, as_marks, encode_seen_block
from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.bounded_read import read_ranges, read_span
from pipeline.kafka.offsets import Span, spans
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.router.seen_hits import read_seen_hits
from tests.roles import delete_below

MakeConfig = Callable[..., Config]


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    made = make_config()
    ensure_topics(made)
    return made


@pytest.fixture
def topic(config: Config) -> str:
    return TopicNames(config.kafka.topic_prefix).deliveries("a")


def fill(config: Config, topic: str, records: int, partitions: int = 4) -> None:
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    for number in range(records):
        producer.produce(topic, b"%d" % number, partition=number % partitions)
    assert producer.flush(30) == 0


def read(config: Config, topic: str, **options: bool) -> list[int]:
    return sorted(int(record.value() or b"") for record in read_span(config.kafka, topic, **options))


def test_one_emptied_partition_of_several(config: Config, topic: str) -> None:
    fill(config, topic, 40)
    delete_below(config, topic, {2: 10})
    assert read(config, topic) == [number for number in range(40) if number % 4 != 2]
    assert spans(config.kafka, topic, committed=True)[2] == Span(10, 10)


@pytest.mark.parametrize("committed", [True, False])
def test_all_partitions_emptied(config: Config, topic: str, committed: bool) -> None:
    fill(config, topic, 40)
    delete_below(config, topic, dict.fromkeys(range(4), 10))
    assert read(config, topic, committed=committed) == []


@pytest.mark.parametrize("committed", [True, False])
def test_only_a_commit_marker_left(config: Config, topic: str, committed: bool) -> None:
    producer = TransactionalProducer(config.kafka, f"{topic}-writer")
    producer.initialise()
    producer.begin()
    for number in range(3):
        producer.produce(topic, b"%d" % number, partition=1)
    producer.commit_alone()
    delete_below(config, topic, {1: 3})
    assert spans(config.kafka, topic, committed=committed)[1] == Span(3, 4)
    assert read(config, topic, committed=committed) == []


def test_retention_strikes_while_the_read_goes_on(config: Config, topic: str) -> None:
    # More than one answer of the broker holds, so that the reader has to ask again behind the cut.
    producer = Producer({"bootstrap.servers": config.kafka.servers, "queue.buffering.max.kbytes": 1_000_000})
    for _ in range(8):
        for number in range(1_000):
            producer.produce(topic, b"%06d" % number + bytes(20_000), partition=0)
        assert producer.flush(60) == 0
    records = read_span(config.kafka, topic)
    first = next(records)
    assert first.offset() == 0
    delete_below(config, topic, {0: 8_000})
    offsets = [record.offset() or 0 for record in records]
    assert offsets == sorted(set(offsets))
    assert len(offsets) < 7_999, "the cut came too late to test anything"


def test_a_settled_read_waits_for_the_open_transaction(config: Config, topic: str) -> None:
    producer = TransactionalProducer(config.kafka, f"{topic}-writer")
    producer.initialise()
    producer.begin()
    producer.produce(topic, b"7", partition=0)
    producer._calls.instance.producer.flush(10)
    fill(config, topic, 1)
    assert read(config, topic) == []
    producer.abort()
    assert read(config, topic, settled=True) == [0]


def test_a_read_that_stalls_says_so(config: Config, topic: str) -> None:
    fill(config, topic, 4)
    with pytest.raises(BrokerUnavailable, match=r"no progress for 1 s, 99 offsets left in partitions \[0\]"):
        list(read_ranges(config.kafka, topic, {0: Span(0, 100), 1: Span(0, 1)}, stalled_seconds=1))


def test_a_range_is_read_and_nothing_else(config: Config, topic: str) -> None:
    fill(config, topic, 40)
    found = read_ranges(config.kafka, topic, {0: Span(2, 4), 3: Span(9, 10)})
    assert sorted((record.partition(), record.offset()) for record in found) == [(0, 2), (0, 3), (3, 9)]


def test_a_partition_ends_early_with_the_record_that_is_the_last_wanted(config: Config, topic: str) -> None:
    fill(config, topic, 40)
    ranges = {0: Span(2, 10), 3: Span(5, 10)}
    found = read_ranges(config.kafka, topic, ranges, is_last=lambda record: record.offset() in (4, 5))
    assert sorted((record.partition(), record.offset()) for record in found) == [(0, 2), (0, 3), (0, 4), (3, 5)]


@pytest.mark.parametrize("owned", [[0, 1], [2, 3], [0, 1, 2, 3]])
def test_the_seen_store_is_rebuilt_from_emptied_partitions(config: Config, owned: list[int]) -> None:
    topic = TopicNames(config.kafka.topic_prefix).seen_hits
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    for partition in range(4):
        block = encode_seen_block(bytes(16), as_hashes([partition]), as_marks([1]), 0, 0, 4)
        producer.produce(topic, block, partition=partition)
    assert producer.flush(30) == 0
    delete_below(config, topic, {0: 1, 3: 1})
    stores = read_seen_hits(config, topic, owned, 4).finish()
    assert {partition: len(store) for partition, store in stores.items()} == {
        partition: {0: 0, 1: 1, 2: 1, 3: 0}[partition] for partition in owned
    }


@pytest.mark.parametrize(("owned", "ids"), [([4, 5], {4: 1, 5: 1}), ([0, 1], {0: 3, 1: 3})])
def test_a_foreign_partition_is_read_to_its_first_block_under_the_present_number(
    config: Config, owned: list[int], ids: dict[int, int]
) -> None:
    """Key hashes 0 to 7 were accepted under four partitions; 0 to 3 again, much later, under six."""
    topic = TopicNames(config.kafka.topic_prefix).seen_hits
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    for partition in range(4):
        for partitions, key_hash in ((4, partition), (4, partition + 4), (6, partition)):
            block = encode_seen_block(bytes(16), as_hashes([key_hash]), as_marks([1]), 0, 0, partitions)
            producer.produce(topic, block, partition=partition)
        if partition not in owned:
            producer.produce(topic, b"not read", partition=partition)
    assert producer.flush(30) == 0
    stores = read_seen_hits(config, topic, owned, 6).finish()
    assert {partition: len(store) for partition, store in stores.items()} == ids
    assert len(spans(config.kafka, topic, committed=False)) == 6
