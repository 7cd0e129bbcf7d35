"""How much of a topic is taken into memory at once."""

from __future__ import annotations

from typing import cast

from confluent_kafka import Consumer

from pipeline.config.models import KafkaConfig
from pipeline.kafka.transport.poller import read_batch
from pipeline.kafka.transport.settings import TransportSettings


class Backlog:
    """A consumer with records of `size` bytes without end."""

    def __init__(self, size: int) -> None:
        self._record = b"x" * size

    def poll(self, timeout: float) -> bytes:
        return self._record

    def consume(self, count: int, timeout: float) -> list[bytes]:
        return [self._record] * count


def records_of(size: int) -> int:
    settings = TransportSettings(KafkaConfig(), "g", batch_records=10_000, batch_bytes=32_000_000, linger_seconds=60.0)
    return len(read_batch(cast(Consumer, Backlog(size)), settings))


def test_a_batch_of_small_records_ends_at_their_number() -> None:
    assert records_of(1_000) == 10_000


def test_a_batch_of_large_records_ends_at_its_bytes_but_for_a_slice() -> None:
    assert 32_000_000 <= records_of(65_536) * 65_536 < 32_000_000 + 250 * 65_536
