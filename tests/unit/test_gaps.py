"""Tests of where reading continues after the broker rejects a position, and of the gaps before that."""

from __future__ import annotations

from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.transport.gaps import Gap, Positions, Resumption, resume_at

TOPIC = "deliveries-a"


@pytest.mark.parametrize(
    ("position", "low", "end", "expected"),
    [
        (10, 15, 40, Resumption(15, Gap(10, 15))),
        (10, 15, 15, Resumption(15, Gap(10, 15, True))),  # emptied
        (0, 7, 9, Resumption(7, Gap(0, 7))),  # never committed
        (50, 0, 10, Resumption(0, None)),  # recreated
        (50, 50, 60, Resumption(50, None)),  # the broker's answer was passing
        (50, 40, 50, Resumption(50, None)),
    ],
)
def test_the_resumption_after_a_rejected_position(position: int, low: int, end: int, expected: Resumption) -> None:
    assert resume_at(position, low, end) == expected


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_a_gap_ends_where_reading_continues_and_holds_only_deleted_offsets(position: int, low: int, width: int) -> None:
    offset, gap = resume_at(position, low, low + width)
    assert low <= offset <= low + width
    assert (gap is not None) == (position < low)
    assert gap is None or (gap == Gap(position, offset, width == 0) and gap.offsets > 0)


@pytest.mark.parametrize(
    ("gap", "expected"), [(Gap(7, 8, True), True), (Gap(7, 8, False), False), (Gap(7, 9, True), False)]
)
def test_only_a_single_offset_at_the_end_is_the_last_marker(gap: Gap, expected: bool) -> None:
    assert gap.is_last_marker == expected


class Broker:
    """The part of a Consumer that Positions uses. `starts` and `ends` are the topic's offsets by partition."""

    def __init__(self) -> None:
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.assigned: dict[int, int] = {}
        self.away = False

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = {partition.partition: partition.offset for partition in partitions}

    def offsets_for_times(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        if self.away:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        where = {-2: self.starts, -1: self.ends}
        return [TopicPartition(TOPIC, tp.partition, where[tp.offset][tp.partition]) for tp in asked]


@pytest.fixture
def broker() -> Broker:
    return Broker()


def positions(broker: Broker, offsets: dict[int, int]) -> Positions:
    made = Positions(cast(Consumer, broker))
    made.assign({TP(TOPIC, partition): offset for partition, offset in offsets.items()})
    return made


def message(partition: int, offset: int, error: int | None = None) -> Message:
    options: dict[str, Any] = {} if error is None else {"error": KafkaError(error)}
    return Message(topic=TOPIC, partition=partition, offset=offset, **options)


def test_records_move_the_position_and_each_batch_commits_only_new_offsets(broker: Broker) -> None:
    read = positions(broker, {0: 10, 1: 0})
    assert len(read.note([message(0, 10), message(0, 11)])) == 2
    assert read.to_commit() == {TP(TOPIC, 0): 12}
    assert read.note([message(0, 13, KafkaError._PARTITION_EOF), message(1, 0, KafkaError._PARTITION_EOF)]) == []
    assert read.to_commit() == {TP(TOPIC, 0): 13}
    assert read.to_commit() == {} and read.gaps() == {}


def test_a_gap_is_found_once_and_other_partitions_keep_their_positions(broker: Broker) -> None:
    broker.starts, broker.ends = {0: 30}, {0: 30}
    read = positions(broker, {0: 10, 1: 5})
    rest = read.note([message(1, 5), message(0, 10), message(0, 11, KafkaError._AUTO_OFFSET_RESET)])
    assert [(found.partition(), found.offset()) for found in rest] == [(1, 5), (0, 10)]
    assert read.gaps() == {TP(TOPIC, 0): Gap(11, 30, True)}
    assert broker.assigned == {0: 30, 1: 6}
    assert read.to_commit() == {TP(TOPIC, 0): 30, TP(TOPIC, 1): 6}
    assert read.gaps() == {}


def test_the_watermarks_are_requested_again_if_the_broker_does_not_respond(broker: Broker) -> None:
    broker.starts, broker.ends, broker.away = {0: 30}, {0: 40}, True
    read = positions(broker, {0: 10})
    read.note([message(0, 10, KafkaError._AUTO_OFFSET_RESET)])
    assert read.gaps() == {} and broker.assigned == {0: 10}
    broker.away = False
    assert read.gaps() == {TP(TOPIC, 0): Gap(10, 30)}


def test_a_new_assignment_drops_earlier_rejected_positions(broker: Broker) -> None:
    read = positions(broker, {0: 10})
    read.note([message(0, 10, KafkaError._AUTO_OFFSET_RESET)])
    read.assign({TP(TOPIC, 1): 7})
    assert read.gaps() == {} and read.to_commit() == {} and broker.assigned == {1: 7}


def test_other_errors_are_returned_to_the_caller(broker: Broker) -> None:
    read = positions(broker, {0: 10})
    assert len(read.note([message(0, 0, KafkaError._ALL_BROKERS_DOWN)])) == 1
