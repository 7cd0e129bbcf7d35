"""Tests of when Kafka counts as unavailable."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from pipeline.kafka.reachability import AGAIN_SECONDS, PAUSE_SECONDS, Reachability, unreachable


def test_two_failures_start_an_outage_and_one_success_ends_it() -> None:
    kafka = Reachability()
    assert kafka.problem is None and not list(kafka.conditions(0.0))
    kafka.observe("no broker responds", 10.0)
    assert kafka.problem is None
    assert kafka.pause_seconds == AGAIN_SECONDS, "the second question comes soon"
    kafka.observe(None, 11.0)
    kafka.observe("no broker responds", 20.0)
    kafka.observe("no broker responds", 22.5)
    (condition,) = kafka.conditions(30.0)
    assert condition.line(30.0) == "kafka: away: no broker responds (for 10 s)"
    kafka.observe(None, 31.0)
    assert kafka.problem is None and kafka.pause_seconds == PAUSE_SECONDS


class Answering:
    """A producer whose broker answers with `answer`, or with this error."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def list_topics(self, topic: str, timeout: float) -> Any:
        assert timeout > 0
        if isinstance(self._answer, Exception):
            raise self._answer
        return SimpleNamespace(topics={topic: self._answer})


def topic(*leaders: int, error: KafkaError | None = None) -> Any:
    partitions = {number: SimpleNamespace(leader=leader) for number, leader in enumerate(leaders)}
    return SimpleNamespace(error=error, partitions=partitions)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (topic(1, 1), None),
        (topic(1, -1), None),
        (topic(-1, -1), "no partition of topic t has a leader"),
        (topic(error=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)), "topic t: "),
        (KafkaException(KafkaError(KafkaError._TRANSPORT, "Broker transport failure")), "no broker responds: Broker"),
    ],
    ids=["all leaders", "some leaders", "no leader", "no topic", "no broker"],
)
def test_a_topic_is_reachable_while_some_partition_takes_records(answer: Any, problem: str | None) -> None:
    found = unreachable(cast(Producer, Answering(answer)), "t")
    assert (found is None) if problem is None else (found is not None and found.startswith(problem))
