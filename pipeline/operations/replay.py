"""Sending raw hits to one connection again: a range of time of hits-raw."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from confluent_kafka import Message, Producer

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import (
    RAW_HIT_SCHEMA,
    RECEIVED_AT,
    REKEYED_FROM,
    REPLAY_ID,
    REPLAY_TO,
    Dead,
    Headers,
    Rekey,
    classify_raw,
)
from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.bounded_read import read_span
from pipeline.kafka.client import client_properties
from pipeline.kafka.offsets import first_offsets_since
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import framing_of

_FLUSH_SECONDS = 60.0


@dataclass(slots=True)
class Replayed:
    """What a replay has done: records sent again, and records that are not hits, by reason."""

    sent: int = 0
    unusable: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Resend:
    """Key and headers under which one hit goes to the router again."""

    key: bytes | None
    headers: Headers


def replay_hits(
    config: Config,
    connection: str,
    from_ms: int,
    to_ms: int,
    replay_id: str,
    told: Callable[[int], None] = lambda sent: None,
) -> Replayed:
    """Send the records of a span of time again. The router routes them to `connection` alone, each hitId once per `replay_id`.

    Duplicates are sent, too, and records that the router has written back beside what they were made from: these derive
    the same hitId, so the router counts all but one as replay_skipped. The same `replay_id` again sends only what has not
    arrived yet. Raises BrokerUnavailable.
    """
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    producer = Producer(
        client_properties(config.kafka, enable__idempotence=True, linger__ms=20, compression__type="lz4")
    )
    framing = framing_of(config, RAW_HIT_SCHEMA)
    failed: list[str] = []
    done = Replayed()

    def reported(error: object, _: Message) -> None:
        if error is not None:
            failed.append(str(error))

    for message in read_span(config.kafka, topic, starts=first_offsets_since(config.kafka, topic, from_ms)):
        if not from_ms <= message.timestamp()[1] < to_ms:
            continue
        again = resend(message, config.projects, framing)
        if isinstance(again, Dead):
            done.unusable[again.reason] += 1
        if not isinstance(again, Resend):
            continue
        headers: Headers = [*again.headers, (REPLAY_TO, connection), (REPLAY_ID, replay_id)]
        while True:
            try:
                producer.produce(topic, message.value(), again.key, headers=headers, on_delivery=reported)
                break
            except BufferError:
                producer.poll(0.1)
        done.sent += 1
        producer.poll(0)
        told(done.sent)
    deadline = time.monotonic() + _FLUSH_SECONDS
    while len(producer) and time.monotonic() < deadline:
        producer.flush(1)
    if failed or len(producer):
        raise BrokerUnavailable(
            f"{len(failed) + len(producer)} of {done.sent} hits could not be written ({failed[:1]}); "
            f"start it again with --id {replay_id}"
        )
    return done


def resend(message: Message, projects: Collection[str], framing: Framing) -> Resend | Dead | None:
    """Return how the hit in `message` is sent again, why it is none, or None for a record of an earlier replay.

    The partition of the record says nothing about that: hits-raw may have had fewer partitions when it was written. The
    append time of a hit that does not say when it was received becomes that time.
    """
    headers: Headers = list(message.headers() or ())  # type: ignore[arg-type] # a list, whatever the stub says
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
    return Resend(key, headers)
