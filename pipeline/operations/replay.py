"""Sending raw hits to one connection again: a range of time of hits-raw."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import Message, Producer

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import RAW_HIT_SCHEMA, REPLAY_ID, REPLAY_TO, Headers, RawHit, classify_raw
from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.bounded_read import read_span
from pipeline.kafka.client import client_properties
from pipeline.kafka.offsets import first_offsets_since
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import framing_of

_FLUSH_SECONDS = 60.0


def replay_hits(
    config: Config,
    connection: str,
    from_ms: int,
    to_ms: int,
    replay_id: str,
    told: Callable[[int], None] = lambda sent: None,
) -> int:
    """How many records were sent again. The router routes them to `connection` alone, each hitId once per `replay_id`.

    The same `replay_id` again sends only what has not arrived yet. Raises BrokerUnavailable.
    """
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    producer = Producer(
        client_properties(config.kafka, enable__idempotence=True, linger__ms=20, compression__type="lz4")
    )
    framing = framing_of(config, RAW_HIT_SCHEMA)
    failed: list[str] = []
    sent = 0

    def reported(error: object, _: Message) -> None:
        if error is not None:
            failed.append(str(error))

    for message in read_span(config.kafka, topic, starts=first_offsets_since(config.kafka, topic, from_ms)):
        if from_ms <= message.timestamp()[1] < to_ms and is_original(message, config, framing):
            headers: Headers = [*(message.headers() or ()), (REPLAY_TO, connection), (REPLAY_ID, replay_id)]  # type: ignore[list-item]
            while True:
                try:
                    producer.produce(topic, message.value(), message.key(), headers=headers, on_delivery=reported)
                    break
                except BufferError:
                    producer.poll(0.1)
            sent += 1
            producer.poll(0)
            told(sent)
    deadline = time.monotonic() + _FLUSH_SECONDS
    while len(producer) and time.monotonic() < deadline:
        producer.flush(1)
    if failed or len(producer):
        raise BrokerUnavailable(
            f"{len(failed) + len(producer)} of {sent} hits could not be written ({failed[:1]}); "
            f"start it again with --id {replay_id}"
        )
    return sent


def is_original(message: Message, config: Config, framing: Framing) -> bool:
    """A hit in its place: no dead letter, no record that was written back under its own key, no earlier replay."""
    found = classify_raw(
        message.value(),
        message.key(),
        message.headers(),  # type: ignore[arg-type] # a list, whatever the stub says
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        config.kafka.partitions,
        config.projects,
        framing,
    )
    return isinstance(found, RawHit) and found.replay_to is None
