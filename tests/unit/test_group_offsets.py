"""Tests of reading committed offsets with clients that have lost Kafka, and while a transaction blocks the offsets."""

from __future__ import annotations

import logging
import threading
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from faust.types import TP

from pipeline.errors import BrokerUnavailable
from pipeline.kafka import group_offsets
from pipeline.kafka.group_offsets import NEVER_COMMITTED, GroupOffsets

TP0, TP1 = TP("hits-raw", 0), TP("hits-raw", 1)
TIMED_OUT = KafkaError(KafkaError._TIMED_OUT, "no answer")


class World:
    """Kafka with committed offsets, the clients made so far, and a clock; each request takes three seconds."""

    def __init__(self) -> None:
        self.offsets = {TP0: 7}
        self.held_back_for = 0
        """Number of requests for stable offsets that time out."""
        self.now = 0.0
        self.clients: list[Client] = []
        self.stopped = threading.Event()
        self.asker = GroupOffsets({"group.id": "route"}, self.stopped, self.make, lambda: self.now)

    def make(self, properties: dict[str, Any]) -> Consumer:
        self.clients.append(Client(self, properties["isolation.level"] == "read_committed"))
        return cast(Consumer, self.clients[-1])

    def lost(self) -> Consumer:
        """The consumer of the group, which has lost Kafka."""
        return cast(Consumer, Client(self, stable=True, lost=True))


class Client:
    def __init__(self, world: World, stable: bool, lost: bool = False) -> None:
        self.world, self.stable, self.lost = world, stable, lost
        self.asked = 0
        self.closed = threading.Event()

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.asked += 1
        self.world.now += timeout
        held_back = self.stable and self.world.held_back_for > 0
        self.world.held_back_for -= self.stable
        if self.lost or held_back:
            raise KafkaException(TIMED_OUT)
        return [
            TopicPartition(p.topic, p.partition, self.world.offsets.get(TP(p.topic, p.partition), -1001))
            for p in partitions
        ]

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(group_offsets, "_PAUSE_SECONDS", 0.0)
    return World()


def test_a_responding_consumer_needs_no_new_client(world: World) -> None:
    consumer = cast(Consumer, Client(world, stable=True))
    assert world.asker.stable_offsets([TP0, TP1], consumer) == {TP0: 7, TP1: NEVER_COMMITTED}
    assert world.clients == []


def test_a_consumer_that_has_lost_kafka_is_replaced_by_a_new_client(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert world.asker.starting_offsets([TP0, TP1], lambda missing: {TP1: 3}, world.lost()) == {TP0: 7, TP1: 3}
    (client,) = world.clients
    assert client.stable and client.asked == 1 and client.closed.wait(10)
    assert world.now < 40 and "the consumer gets no response" in caplog.text


def test_offsets_blocked_by_an_open_transaction_are_awaited_and_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.held_back_for = 30
    with caplog.at_level(logging.ERROR):
        assert world.asker.stable_offsets([TP0]) == {TP0: 7}
    assert "open transaction" in caplog.text and "find-hanging" in caplog.text
    assert all(made.closed.wait(10) for made in world.clients)
    assert len(world.clients) < 10


def test_the_recovery_of_missing_offsets_is_retried_until_it_succeeds(world: World) -> None:
    answers = iter([BrokerUnavailable("away"), {TP1: 5}])

    def recover(missing: object) -> dict[TP, int]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert world.asker.starting_offsets([TP1], recover, cast(Consumer, Client(world, stable=True))) == {TP1: 5}


def test_a_stop_ends_the_wait(world: World) -> None:
    world.held_back_for = 10**9
    threading.Timer(0.2, world.stopped.set).start()
    assert world.asker.stable_offsets([TP0]) is None
    assert all(made.closed.wait(10) for made in world.clients)


def test_no_partitions_need_no_client(world: World) -> None:
    assert world.asker.stable_offsets([]) == {} and world.clients == []
