"""Reads new hits from hits-raw or from the topic of one connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from confluent_kafka import OFFSET_END, Consumer, TopicPartition

from pipeline.codec.hit import decode_hit
from pipeline.codec.raw_record import is_public
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.codec.routed_hit import time_text
from pipeline.config.models import Config
from pipeline.delivery.deliverers import RoutedHits
from pipeline.destination import Rejected
from pipeline.errors import BrokerUnavailable, InvalidHit
from pipeline.kafka.client import client_properties, unavailable_on_error
from pipeline.kafka.offsets import PATIENCE_SECONDS
from pipeline.kafka.patience import in_slices
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import framing_of, header_texts


class _Named(msgspec.Struct, gc=False):
    name: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True)
class TailedHit:
    """One record. `value` is JSON; `hit_id` and `event` are "" if the hit has none. `is_public`: it came in by a public door."""

    at: str
    project: str
    hit_id: str
    event: str
    value: bytes
    is_public: bool = False


def tail(config: Config, connection: str | None = None) -> Iterator[TailedHit | None]:
    """Yield each hit written from now on, and None after each 0.5 s without one. Never ends.

    Raises BrokerUnavailable if Kafka does not respond at the start.
    """
    names = TopicNames(config.kafka.topic_prefix)
    topic = names.hits_raw if connection is None else names.deliveries(connection)
    hits = RoutedHits(framing_of(config, ROUTED_HIT_SCHEMA))
    consumer = Consumer(
        {
            **client_properties(config.kafka),
            "group.id": "hitrouter-read",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    try:
        with unavailable_on_error(config.kafka, f"topic {topic}"):
            listed = in_slices(lambda timeout: consumer.list_topics(topic, timeout=timeout), PATIENCE_SECONDS)
        found = listed.topics[topic]
        if found.error is not None:
            raise BrokerUnavailable(
                f"topic {topic} cannot be read from Kafka at {config.kafka.servers}: {found.error.str()}; "
                "run `hitrouter topics` to see which topics are missing"
            )
        consumer.assign([TopicPartition(topic, partition, OFFSET_END) for partition in found.partitions])
        yield None
        while True:
            messages = [message for message in consumer.consume(100, 0.5) if message.error() is None]
            for message in messages:
                at, value = time_text(message.timestamp()[1]), message.value() or b""
                if connection is None:
                    project = header_texts(message).get("project", "")
                    public = is_public(message.headers())  # type: ignore[arg-type] # a list; the type stub is wrong
                    try:
                        hit = decode_hit(value)
                        _, _, key_id = (message.key() or b"").decode(errors="replace").partition("/")
                        yield TailedHit(at, project, hit.hit_id or key_id, hit.event_name, value, public)
                    except InvalidHit:
                        yield TailedHit(at, project, "", "", value, public)
                else:
                    read = hits.read(value)
                    if isinstance(read, Rejected):
                        yield TailedHit(at, "", "", "", value)
                    else:
                        raw = bytes(msgspec.json.decode(read.hit.event, type=_Named).name)
                        name = msgspec.json.decode(raw) if raw.startswith(b'"') else ""
                        yield TailedHit(at, read.hit.projectId, read.hit.hitId, name, read.value, read.hit.is_public)
            if not messages:
                yield None
    finally:
        consumer.close()
