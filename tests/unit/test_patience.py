"""Tests of requests to Kafka that are repeated with short timeouts."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.kafka.patience import in_slices


def failing(*codes: int | None) -> tuple[Callable[[float], str], list[float]]:
    """A call that fails with each of `codes` in turn (None: it takes its whole time-out), and the time-outs it was given."""
    given: list[float] = []

    def call(timeout_seconds: float) -> str:
        given.append(timeout_seconds)
        if len(given) > len(codes):
            return "answer"
        code = codes[len(given) - 1]
        if code is None:
            time.sleep(timeout_seconds)
            raise TimeoutError
        raise KafkaException(KafkaError(code))

    return call, given


def test_a_lost_request_costs_one_timeout_and_not_the_whole_time_limit() -> None:
    call, given = failing(None)
    assert in_slices(call, patience_seconds=30, slice_seconds=0.2) == "answer"
    assert given == pytest.approx([0.2, 0.3])


def test_a_temporary_error_is_retried_with_the_same_timeout() -> None:
    call, given = failing(
        KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError._TRANSPORT, KafkaError.COORDINATOR_NOT_AVAILABLE
    )
    assert in_slices(call, patience_seconds=30, slice_seconds=5) == "answer"
    assert given == [5, 5, 5, 5]


def test_a_permanent_error_is_raised_at_once() -> None:
    call, given = failing(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaException) as caught:
        in_slices(call, patience_seconds=30)
    assert caught.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert len(given) == 1


def test_the_last_error_is_raised_after_the_time_limit() -> None:
    call, given = failing(*[None] * 1000)
    with pytest.raises(KafkaException) as caught:
        in_slices(call, patience_seconds=0.5, slice_seconds=0.1)
    assert caught.value.args[0].code() == KafkaError._TIMED_OUT
    assert 2 <= len(given) <= 5
