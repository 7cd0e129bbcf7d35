"""Finds the first committed record in each of many offset ranges, with a single consumer.

Each partition is paused once its record is found. Otherwise its backlog would fill the next fetch responses: a broker serves
the partitions of a request in turn and stops at the byte limit, so later partitions would never be served. Partitions are not
unassigned: `incremental_unassign` just before `close` crashed librdkafka 2.16 (SIGSEGV in rd_kafka_cgrp_op, once in the demo).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, TopicPartition

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.client import client_properties
from pipeline.kafka.offsets import PATIENCE_SECONDS, Span
from pipeline.kafka.watermarks import Place

_WAIT_SECONDS = 0.1
_FETCH_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class FirstRecord:
    """The first record at or after the start of a range.

    `written_ms` is None if the range holds no committed record. Then `offset` is where the search ended: everything before
    it is commit markers and aborted records.
    """

    offset: int
    written_ms: int | None


def first_records(
    kafka: KafkaConfig, ranges: Mapping[Place, Span], patience_seconds: float = PATIENCE_SECONDS
) -> dict[Place, FirstRecord]:
    """Return the first record of each range that is not empty. Blocks.

    Raises BrokerUnavailable after `patience_seconds` without progress.
    """
    waiting = {place: span for place, span in ranges.items() if not span.is_empty}
    found: dict[Place, FirstRecord] = {}
    if not waiting:
        return found
    consumer = Consumer(
        client_properties(
            kafka,
            group__id="hitrouter-read",  # required by librdkafka; never joined
            enable__auto__commit=False,
            enable__partition__eof=True,
            isolation__level="read_committed",
            auto__offset__reset="earliest",  # if retention deletes the first offset to read
            fetch__wait__max__ms=10,
            # Only one record is needed. The broker sends at least one batch, whatever its size.
            fetch__message__max__bytes=_FETCH_BYTES,
            queued__min__messages=1,
        )
    )
    moved_at = time.monotonic()
    try:
        consumer.assign([TopicPartition(*place, span.low) for place, span in waiting.items()])
        while waiting:
            new: list[TopicPartition] = []
            for message in consumer.consume(1000, _WAIT_SECONDS):
                place, offset, error = (
                    (message.topic() or "", message.partition() or 0),
                    message.offset() or 0,
                    message.error(),
                )
                if place not in waiting or (error is not None and error.code() != KafkaError._PARTITION_EOF):
                    continue
                is_within = error is None and offset < waiting[place].end
                found[place] = FirstRecord(
                    min(offset, waiting.pop(place).end), message.timestamp()[1] if is_within else None
                )
                new.append(TopicPartition(*place))
            if new:
                moved_at = time.monotonic()
                consumer.pause(new)
            if waiting and time.monotonic() > moved_at + patience_seconds:
                raise BrokerUnavailable(
                    f"{len(waiting)} partitions cannot be read, such as {next(iter(waiting))}: no response for "
                    f"{patience_seconds:.0f} s; check the brokers at {kafka.servers}"
                )
    finally:
        consumer.close()
    return found
