"""Routers that were away for long still know the ids within the window of the hits that waited, and read no older ones."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.codec.seen_block import as_hashes, as_marks, encode_seen_block
from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.router import seen_hits
from pipeline.router.seen_hits import read_seen_hits, window_start
from tests.contract.test_growth import grow

GROUP = "route"
WINDOW_SECONDS = 3.0
LEAST_SECONDS = WINDOW_SECONDS * 4 / 3
"""What lies this much before a hit is outside of its window, and of the third that a seen store keeps beyond it."""


@pytest.fixture
def config(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(seen_hits, "_CLOCKS_MS", 0)
    config = make_config({}, dedupe={"window": f"{WINDOW_SECONDS:g}s"})
    config = config.model_copy(update={"kafka": config.kafka.model_copy(update={"partitions": 1})})
    ensure_topics(config)
    return config


def write(config: Config, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    producer.produce(topic, value, partition=0)
    assert producer.flush(30) == 0


def commit(config: Config, offset: int) -> None:
    consumer = Consumer({"bootstrap.servers": config.kafka.servers, "group.id": GROUP})
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
    consumer.close()


def route_one(config: Config) -> None:
    """A hit, its block, and the offset behind it."""
    names = TopicNames(config.kafka.topic_prefix)
    write(config, names.hits_raw, b"{}")
    now_ms = round(time.time() * 1000)
    write(config, names.seen_hits, encode_seen_block(bytes(16), as_hashes([0]), as_marks([1]), 0, now_ms, 1))
    commit(config, 1)


def known_ids(config: Config) -> int:
    topic = TopicNames(config.kafka.topic_prefix).seen_hits
    return len(read_seen_hits(config, topic, [0], 1, window_start(config, GROUP, [0])).finish()[0])


def test_a_duplicate_that_waited_for_long_finds_the_id(config: Config) -> None:
    route_one(config)
    time.sleep(1)
    write(config, TopicNames(config.kafka.topic_prefix).hits_raw, b"{}")
    time.sleep(LEAST_SECONDS + 1)  # the block is older than the window by now, but not for the hit that waits
    assert known_ids(config) == 1


def test_ids_outside_of_the_window_of_the_oldest_unrouted_hit_are_not_read(config: Config) -> None:
    route_one(config)
    time.sleep(LEAST_SECONDS + 1)
    write(config, TopicNames(config.kafka.topic_prefix).hits_raw, b"{}")
    assert known_ids(config) == 0


def test_without_unrouted_hits_the_newest_hit_says_where_the_window_begins(config: Config) -> None:
    route_one(config)
    time.sleep(LEAST_SECONDS + 1)
    assert known_ids(config) == 1
    write(config, TopicNames(config.kafka.topic_prefix).hits_raw, b"{}")
    commit(config, 2)
    assert known_ids(config) == 0


def test_without_a_committed_offset_everything_waits(config: Config) -> None:
    write(config, TopicNames(config.kafka.topic_prefix).hits_raw, b"{}")
    first = window_start(config, GROUP, [0])
    assert first is not None and 0 < time.time() - first / 1000 - LEAST_SECONDS < 30
    time.sleep(1)
    write(config, TopicNames(config.kafka.topic_prefix).hits_raw, b"{}")
    assert window_start(config, GROUP, [0]) == first


def test_a_new_partition_has_no_older_window_than_the_others(config: Config) -> None:
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    route_one(config)
    grow(config, 2, topic)
    first = window_start(config, GROUP, [0])
    assert first is not None and window_start(config, GROUP, [0, 1]) == window_start(config, GROUP, [1]) == first


def test_everything_is_read_where_hits_raw_is_empty(config: Config) -> None:
    assert window_start(config, GROUP, [0]) is None
