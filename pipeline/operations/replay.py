"""Replays a time range of hits-raw to one connection."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from confluent_kafka import Message, Producer

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import RAW_HIT_SCHEMA, RECEIVED_AT, REKEYED_FROM, REPLAY_ID, REPLAY_TO, Headers
from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.bounded_read import read_span
from pipeline.kafka.client import client_properties
from pipeline.kafka.offsets import first_offsets_since
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import framing_of
from pipeline.stages.classify import Dead, Rekey, classify_raw

_FLUSH_SECONDS = 60.0


@dataclass(slots=True)
class ReplayResult:
    """The counts of a replay: records sent, and records that are not valid hits by reason."""

    sent: int = 0
    unusable: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class ReplayRecord:
    """The key and headers with which one hit is written to hits-raw again."""

    key: bytes | None
    headers: Headers


def replay_hits(
    config: Config,
    connection: str,
    from_ms: int,
    to_ms: int,
    replay_id: str,
    progress: Callable[[int], None] = lambda sent: None,
) -> ReplayResult:
    """Write the records of a time range to hits-raw again. The router routes each hitId once per `replay_id`, to `connection`.

    Duplicates are written, too, and both the original and the copy of rekeyed records. These have the same hitId, so the
    router counts all but one as replay_skipped. A second run with the same `replay_id` routes only what is missing.
    `progress` receives the number of records written so far. Raises BrokerUnavailable.
    """
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    producer = Producer(
        client_properties(config.kafka, enable__idempotence=True, linger__ms=20, compression__type="lz4")
    )
    framing = framing_of(config, RAW_HIT_SCHEMA)
    failed: list[str] = []
    done = ReplayResult()

    def on_delivery(error: object, _: Message) -> None:
        if error is not None:
            failed.append(str(error))

    for message in read_span(config.kafka, topic, starts=first_offsets_since(config.kafka, topic, from_ms)):
        if not from_ms <= message.timestamp()[1] < to_ms:
            continue
        record = replay_record(message, config.projects, framing)
        if isinstance(record, Dead):
            done.unusable[record.reason] += 1
        if not isinstance(record, ReplayRecord):
            continue
        headers: Headers = [*record.headers, (REPLAY_TO, connection), (REPLAY_ID, replay_id)]
        while True:
            try:
                producer.produce(topic, message.value(), record.key, headers=headers, on_delivery=on_delivery)
                break
            except BufferError:
                producer.poll(0.1)
        done.sent += 1
        producer.poll(0)
        progress(done.sent)
    deadline = time.monotonic() + _FLUSH_SECONDS
    while len(producer) and time.monotonic() < deadline:
        producer.flush(1)
    if failed or len(producer):
        raise BrokerUnavailable(
            f"{len(failed) + len(producer)} of {done.sent} hits could not be written to {topic}; "
            f"start the replay again with --id {replay_id}; first error: {', '.join(failed[:1]) or 'no acknowledgement'}"
        )
    return done


def replay_record(message: Message, projects: Collection[str], framing: Framing) -> ReplayRecord | Dead | None:
    """Return the record to write for `message`, why it is not a valid hit, or None for a record of an earlier replay.

    The partition of `message` is ignored, since hits-raw may have had fewer partitions when it was written. A hit without
    `received-at` gets the append time of its record.
    """
    headers: Headers = list(message.headers() or ())  # type: ignore[arg-type] # a list; the type stub is wrong
    if any(name == REPLAY_TO for name, _ in headers):
        return None
    place = (message.topic() or "", message.partition() or 0, message.offset() or 0)
    found = classify_raw(message.value(), message.key(), headers, *place, 1, projects, framing)
    if isinstance(found, Dead):
        return found
    key, is_dated = message.key(), True
    if isinstance(found, Rekey):
        key, headers, is_dated = found.key, found.headers, found.is_dated
    elif found.received_at_ms is None:
        is_dated = False
    headers = [(name, value) for name, value in headers if name != REKEYED_FROM]
    if not is_dated:
        headers.append((RECEIVED_AT, b"%d" % message.timestamp()[1]))
    return ReplayRecord(key, headers)
