"""Tests of the batch limit: batches shrink while transactions fail, and grow back to their configured size."""

from __future__ import annotations

from typing import cast

import pytest
from confluent_kafka import Consumer

from pipeline.config.models import KafkaConfig
from pipeline.kafka.transport.batch_limit import LEAST_RECORDS, BatchLimit
from pipeline.kafka.transport.read_batch import read_batch
from pipeline.kafka.transport.settings import TransportSettings
from tests.unit.test_batches import Backlog


def test_a_batch_that_is_too_large_for_kafka_becomes_small_enough() -> None:
    """Kafka needs 5 ms per record, and aborts a transaction after 10 s."""
    limit, tries = BatchLimit(10_000), 0
    while (seconds := (limit.records or 10_000) * 0.005) > 10:
        tries += 1
        limit.aborted(10.0, tries)
    assert tries == 3 and limit.records == 1_250
    limit.committed(seconds)
    assert limit.records == 1_250, "a transaction of 6 s does not allow one of 12 s"


def test_one_quick_abort_keeps_the_limit_and_several_halve_it() -> None:
    limit = BatchLimit(2_000)
    limit.aborted(0.1, 1)
    assert limit.records is None
    for attempt in range(2, 40):
        limit.aborted(0.1, attempt)
    assert limit.records == LEAST_RECORDS
    commits = 0
    while limit.records is not None:
        limit.committed(0.05)
        commits += 1
    assert commits == 8


@pytest.mark.parametrize("place", [0, 1, 998, 1_999])
def test_a_faulty_record_is_isolated_after_a_few_batches(place: int) -> None:
    limit, at, tries = BatchLimit(2_000), 0, 0
    while True:
        tries += 1
        size = limit.records or 2_000
        if size == 1 and at == place:
            break
        if at <= place < at + size:
            limit.content_failed(size)
        else:
            at += size
            limit.committed(0.01)
    assert tries <= 30


def test_a_webhook_batch_is_never_raised_to_the_least_size() -> None:
    limit = BatchLimit(4)
    for attempt in range(2, 9):
        limit.aborted(0.1, attempt)
    assert limit.records == 4


def test_a_limited_batch_does_not_grow() -> None:
    settings = TransportSettings(KafkaConfig(), "g", batch_records=2_000, linger_seconds=60.0, growth=5)
    backlog = cast(Consumer, Backlog(100))
    assert len(read_batch(backlog, settings, lambda: True)) == 10_000
    assert len(read_batch(backlog, settings, lambda: True, 600)) == 600
    assert len(read_batch(backlog, settings, lambda: False, 5_000)) == 2_000
