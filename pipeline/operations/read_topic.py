"""Reading a topic once, from its start to where it ends now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition

from pipeline.codec.avro import Framing, Schema
from pipeline.config.models import Config, KafkaConfig
from pipeline.kafka.client import client_properties
from pipeline.kafka.offsets import end_offsets
from pipeline.kafka.schema_registry import SchemaRegistry


def header_texts(message: Message) -> dict[str, str]:
    """The record's headers as texts; the last one of a name counts."""
    headers: Any = message.headers() or ()  # a list of pairs, whatever the stub says
    return {name: (value or b"").decode(errors="replace") for name, value in headers}


def framing_of(config: Config, schema: Schema) -> Framing:
    """How values of `schema` are read: with the registry where there is one."""
    registry = config.kafka.schema_registry
    return SchemaRegistry(registry).reading(schema) if registry else Framing(schema)


def read_topic(kafka: KafkaConfig, topic: str, committed: bool = True, settled: bool = False) -> Iterator[Message]:
    """Every record that is there now; with `committed` only those of committed transactions.

    What was committed behind a transaction that is still open is not among them, unless `settled`: then that one is waited for,
    which takes as long as it may last at most. Raises BrokerUnavailable when Kafka does not answer or the topic does not exist.
    """
    ends = end_offsets(kafka, topic, committed and not settled)
    consumer = Consumer(
        {
            **client_properties(kafka),
            "group.id": "hitrouter-read",
            "enable.auto.commit": False,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "auto.offset.reset": "earliest",
        }
    )
    try:
        waiting = {partition for partition, end in ends.items() if end > 0}
        consumer.assign([TopicPartition(topic, partition, 0) for partition in waiting])
        while waiting:
            for message in consumer.consume(1000, 0.2):
                if message.error() is None and (message.offset() or 0) < ends[message.partition() or 0]:
                    yield message
            for position in consumer.position([TopicPartition(topic, partition) for partition in waiting]):
                if position.offset >= ends[position.partition]:
                    waiting.discard(position.partition)
    finally:
        consumer.close()
