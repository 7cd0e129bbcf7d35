"""Reads a topic once, from its start to its current end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from confluent_kafka import Message

from pipeline.codec.avro import Framing, Schema
from pipeline.config.models import Config, KafkaConfig
from pipeline.kafka.bounded_read import read_span
from pipeline.kafka.schema_registry import SchemaRegistry


def header_texts(message: Message) -> dict[str, str]:
    """Return the record's headers as texts; for a repeated name the last value counts."""
    headers: Any = message.headers() or ()  # a list of pairs; the type stub is wrong
    return {name: (value or b"").decode(errors="replace") for name, value in headers}


def framing_of(config: Config, schema: Schema) -> Framing:
    """Return the framing to decode values of `schema`, with the schema registry if there is one."""
    registry = config.kafka.schema_registry
    return SchemaRegistry(registry).reading(schema) if registry else Framing(schema)


def read_topic(kafka: KafkaConfig, topic: str, committed: bool = True, settled: bool = False) -> Iterator[Message]:
    """Yield every record that `topic` holds now; see `read_span` for `committed`, `settled` and the errors raised."""
    return read_span(kafka, topic, committed=committed, settled=settled)
