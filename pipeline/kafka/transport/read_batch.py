"""How much of a topic becomes one batch: by records, bytes and time, and by how slow commits are."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import Consumer, Message

from pipeline.kafka.transport.settings import TransportSettings

_SLICE_RECORDS = 250
"""A batch may exceed its bytes by this many records."""
_GROWTH_SLICE_SECONDS = 0.05
_GROWTH_SECONDS = 5.0
"""A batch stays open for this long at most: other things wait for the poll thread, too."""


def read_batch(
    consumer: Consumer,
    settings: TransportSettings,
    may_grow: Callable[[], bool] = lambda: False,
    limit: int | None = None,
) -> list[Message]:
    """Return what there is, up to the records, the time and (but for a slice) the bytes of a batch.

    While `may_grow`, because a slow commit holds the batch up anyway, it stays open and takes up to `most_records`. With a
    `limit` it takes no more records than that.
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
