"""A consumer that has lost a Kafka that others reach is replaced; one whose Kafka is away waits."""

from __future__ import annotations

from typing import cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException

from pipeline.config.models import KafkaConfig
from pipeline.kafka.transport import outage
from pipeline.kafka.transport.outage import OutageWatch

DOWN = KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")


class World:
    """A consumer, another client of the same Kafka, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = self.others_reach = True
        self.now = 1_000.0
        self.asked = 0
        monkeypatch.setattr(outage, "new_client_reaches", lambda kafka: self.others_reach)
        monkeypatch.setattr(outage.time, "monotonic", lambda: self.now)
        self.watch = OutageWatch(KafkaConfig())

    def list_topics(self, topic: str, timeout: float) -> None:
        self.asked += 1
        if not self.answers:
            raise KafkaException(DOWN)

    def lost_within(self, seconds: int) -> int | None:
        """After how many seconds the consumer is lost."""
        for second in range(seconds):
            self.now += 1
            if self.watch.is_lost(cast(Consumer, self), "hits-raw"):
                return second
        return None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_without_an_outage_nobody_is_asked(world: World) -> None:
    assert world.lost_within(600) is None and world.asked == 0


def test_a_kafka_that_is_away_for_all_costs_no_consumer(world: World) -> None:
    world.answers = world.others_reach = False
    world.watch.failed(DOWN)
    assert world.lost_within(600) is None and 100 < world.asked <= 120


def test_a_consumer_that_does_not_come_back_is_lost(world: World) -> None:
    world.answers = False
    world.watch.failed(DOWN)
    found = world.lost_within(600)
    assert found is not None and 15 <= found <= 25


def test_one_answer_ends_the_doubt(world: World) -> None:
    world.answers = False
    world.watch.failed(DOWN)
    assert world.lost_within(10) is None
    world.answers = True
    assert world.lost_within(600) is None and world.asked <= 3
