"""Tests of when a consumer is replaced: it has lost a Kafka that other clients reach, or gets no assignment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException

from pipeline.config.models import KafkaConfig
from pipeline.kafka.transport import outage
from pipeline.kafka.transport.outage import OutageWatch

DOWN = KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")
BROKEN = KafkaError(KafkaError._TRANSPORT, "connection reset")


class World:
    """A consumer, another client of the same Kafka, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = self.others_reach = True
        self.now = 1_000.0
        self.asked = self.others_asked = self.ended = 0
        monkeypatch.setattr(outage, "new_client_reaches", self.reaches)
        monkeypatch.setattr(outage.time, "monotonic", lambda: self.now)
        self.watch = OutageWatch(KafkaConfig(), self.end)

    def reaches(self, kafka: KafkaConfig) -> bool:
        self.others_asked += 1
        return self.others_reach

    def end(self) -> None:
        self.ended += 1

    def list_topics(self, topic: str, timeout: float) -> None:
        self.asked += 1
        if not self.answers:
            raise KafkaException(DOWN)

    def lost_within(self, seconds: int) -> tuple[int, str] | None:
        """After how many seconds the consumer is lost, and why."""
        for second in range(seconds):
            self.now += 1
            if (reason := self.watch.replacement_reason(cast(Consumer, self), "hits-raw")) is not None:
                return second, reason
        return None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_without_an_outage_kafka_is_not_checked(world: World) -> None:
    assert world.lost_within(600) is None and (world.asked, world.others_asked) == (0, 0)


def test_an_outage_for_all_clients_replaces_no_consumer_and_makes_few_new_clients(world: World) -> None:
    world.answers = world.others_reach = False
    world.watch.failed(DOWN)
    assert world.lost_within(600) is None and world.others_asked <= 120
    assert 500 < world.asked <= 600


def test_a_consumer_that_does_not_reconnect_is_replaced(world: World) -> None:
    world.answers = False
    world.watch.failed(DOWN)
    found = world.lost_within(600)
    assert found is not None and 15 <= found[0] <= 25 and "cannot reach Kafka" in found[1]


def test_one_response_ends_the_outage(world: World) -> None:
    world.answers = False
    world.watch.failed(DOWN)
    assert world.lost_within(10) is None and world.ended == 0
    world.answers = True
    assert world.lost_within(2) is None and world.ended == 1
    asked = world.asked
    assert world.lost_within(600) is None and (world.asked, world.ended) == (asked, 1)


def test_one_broken_connection_is_no_outage(world: World) -> None:
    world.watch.failed(BROKEN)
    assert world.lost_within(60) is None and (world.asked, world.ended) == (1, 0)


def test_a_consumer_without_an_assignment_is_replaced_if_kafka_responds_even_without_an_error(
    world: World,
) -> None:
    world.watch.joining()
    found = world.lost_within(600)
    assert found is not None and 40 <= found[0] <= 55 and "no assignment" in found[1]
    world.watch.joining()  # of the next consumer, which gets more time
    again = world.lost_within(600)
    assert again is not None and 70 <= again[0] <= 85


def test_a_slow_rebalance_during_an_outage_replaces_no_consumer(world: World) -> None:
    world.watch.joining()
    assert world.lost_within(40) is None
    world.watch.joined()
    assert world.lost_within(600) is None
    world.others_reach = False
    world.watch.joining()
    assert world.lost_within(600) is None
    world.others_reach = True
    assert world.lost_within(30) is None, "it has its time once Kafka is back"
    world.watch.joined()
    assert world.lost_within(600) is None


def test_a_replaced_consumer_gets_the_full_time_to_join(world: World) -> None:
    world.answers = world.others_reach = False
    world.watch.failed(DOWN)
    world.watch.joining()
    assert world.lost_within(120) is None
    world.others_reach = True
    found = world.lost_within(30)
    assert found is not None and "cannot reach Kafka" in found[1]
    world.answers = True
    world.watch.joining()
    assert world.lost_within(40) is None


_ROOT = Path(__file__).parent.parent.parent
_LOGS_IN_AN_OUTAGE = (
    "kafka/producer_calls",
    "kafka/transport/poller",
    "kafka/group_offsets",
    "kafka/worker_health",
    "supervisor/hangs",
)
_NO_OUTAGE = {"group not left in time, its session will expire"}
"""Logged only while a worker stops."""


@pytest.mark.parametrize("module", _LOGS_IN_AN_OUTAGE)
def test_the_operations_guide_explains_each_log_line_of_an_outage(module: str) -> None:
    code = (_ROOT / "pipeline" / f"{module}.py").read_text()
    lines = set(re.findall(r"\.(?:warning|error)\(\s*\"([a-z][^\":%]+)", code)) - _NO_OUTAGE
    rows = [row for row in (_ROOT / "docs" / "reference" / "logs.md").read_text().splitlines() if row.startswith("| ")]
    shown = [text for row in rows for text in re.findall("`([^`]+)`", row.split(" | ")[0])]
    assert lines, "no log line found: has the logging style changed?"
    missing = [line for line in lines if not any(line.startswith(text.split(": ")[0]) for text in shown)]
    assert not [line for line in missing if "known yet, will retry" not in line]
