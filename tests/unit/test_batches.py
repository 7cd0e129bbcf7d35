"""Tests of the size of one batch."""

from __future__ import annotations

from typing import cast

from confluent_kafka import Consumer

from pipeline.config.models import KafkaConfig
from pipeline.kafka.transport.read_batch import read_batch
from pipeline.kafka.transport.settings import TransportSettings


class Backlog:
    """A consumer with an endless backlog of records of `size` bytes."""

    def __init__(self, size: int) -> None:
        self._record = b"x" * size

    def poll(self, timeout: float) -> bytes:
        return self._record

    def consume(self, count: int, timeout: float) -> list[bytes]:
        return [self._record] * count


def records_of(size: int) -> int:
    settings = TransportSettings(KafkaConfig(), "g", batch_records=10_000, batch_bytes=32_000_000, linger_seconds=60.0)
    return len(read_batch(cast(Consumer, Backlog(size)), settings))


def test_a_batch_of_small_records_is_limited_by_their_number() -> None:
    assert records_of(1_000) == 10_000


def test_a_batch_of_large_records_is_limited_by_bytes_within_one_slice() -> None:
    assert 32_000_000 <= records_of(65_536) * 65_536 < 32_000_000 + 250 * 65_536


class Trickle:
    """A consumer with one record per call, each of 1,000 bytes."""

    def __init__(self) -> None:
        self.calls = 0

    def poll(self, timeout: float) -> bytes:
        return b"x" * 1_000

    def consume(self, count: int, timeout: float) -> list[bytes]:
        self.calls += 1
        return [b"x" * 1_000]


def test_a_batch_that_waits_for_a_slow_commit_grows_until_the_commit_ends() -> None:
    settings = TransportSettings(KafkaConfig(), "g", batch_records=10, linger_seconds=60.0, growth=100)
    trickle = Trickle()
    batch = read_batch(cast(Consumer, trickle), settings, lambda: trickle.calls < 300)
    assert len(batch) == 301


def test_its_growth_is_bounded_by_records_and_by_bytes() -> None:
    records = TransportSettings(KafkaConfig(), "g", batch_records=10, linger_seconds=60.0, growth=5)
    assert len(read_batch(cast(Consumer, Trickle()), records, lambda: True)) == 50
    narrow = TransportSettings(
        KafkaConfig(), "g", batch_records=10, linger_seconds=60.0, growth=500, batch_bytes=99_500
    )
    assert len(read_batch(cast(Consumer, Trickle()), narrow, lambda: True)) == 100


def test_batches_with_a_growth_of_one_do_not_grow() -> None:
    settings = TransportSettings(KafkaConfig(), "g", batch_records=32, linger_seconds=60.0)
    assert len(read_batch(cast(Consumer, Trickle()), settings, lambda: True)) == 32
