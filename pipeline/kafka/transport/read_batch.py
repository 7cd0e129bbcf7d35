"""Reads the records of one batch, limited by number, bytes and time; it grows while a commit is slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from confluent_kafka import Consumer, Message
from faust.types import TP

from pipeline.kafka.transport.settings import TransportSettings

_SLICE_RECORDS = 250
"""Records per call of `consume`; a batch may exceed its limit of bytes by this many records."""
_GROWTH_SLICE_SECONDS = 0.05
_GROWTH_SECONDS = 5.0
"""A batch grows for this long at most, because other work waits for the poll thread, too."""


def read_batch(
    consumer: Consumer,
    settings: TransportSettings,
    may_grow: Callable[[], bool] = lambda: False,
    limit: int | None = None,
) -> list[Message]:
    """Return the available records, up to the configured number, time and (approximately) bytes of a batch.

    While `may_grow` returns true, a slow commit delays the batch anyway, so reading continues up to `most_records`. `limit`
    is an upper bound of the records, also for growth. Blocks; runs on the poll thread.
    """
    usual, most = settings.batch_records, settings.most_records
    if limit is not None:
        usual = most = min(limit, usual)
    first = consumer.poll(0.25)
    if first is None:
        return []
    messages, room_bytes = [first], settings.batch_bytes - len(first)
    began = time.monotonic()
    end = began + settings.linger_seconds
    while room_bytes > 0:
        grows = may_grow() and time.monotonic() - began < _GROWTH_SECONDS
        missing = (most if grows else usual) - len(messages)
        left = _GROWTH_SLICE_SECONDS if grows else end - time.monotonic()
        if missing <= 0 or left <= 0:
            break
        more = consumer.consume(min(missing, _SLICE_RECORDS), left)
        messages += more
        room_bytes -= sum(map(len, more))
    return messages


def by_partition(messages: Iterable[Message], is_record: Callable[[Message], bool]) -> dict[TP, list[Message]]:
    """Group records by partition. Messages with an error are passed to `is_record`, which may return False."""
    records: dict[TP, list[Message]] = {}
    last: tuple[str | None, int | None] | None = None
    current: list[Message] = []
    for message in messages:
        if message.error() is not None and not is_record(message):
            continue
        place = (message.topic(), message.partition())
        if place != last:  # consecutive records usually belong to the same partition
            last = place
            current = records.setdefault(TP(*place), [])
        current.append(message)
    return records
