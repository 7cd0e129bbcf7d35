"""Reading a topic once, from its start to where it ends now."""

from __future__ import annotations

from collections.abc import Iterator

from confluent_kafka import Consumer, IsolationLevel, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.client import client_properties


def read_topic(kafka: KafkaConfig, topic: str, committed: bool = True) -> Iterator[Message]:
    """Every record that is there now; with `committed` only those of committed transactions.

    Raises BrokerUnavailable when Kafka does not answer or the topic does not exist.
    """
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    properties = client_properties(kafka, log_level=3)
    try:
        admin = AdminClient(properties)
        found = admin.list_topics(topic, timeout=10).topics[topic]
        if found.error is not None:
            raise BrokerUnavailable(f"topic {topic}: {found.error.str()}")
        wanted = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in found.partitions}
        futures = admin.list_offsets(wanted, isolation_level=level, request_timeout=30)
        ends = {tp.partition: future.result().offset for tp, future in futures.items()}
    except KafkaException as error:
        raise BrokerUnavailable(f"Kafka at {kafka.servers} does not answer: {error.args[0].str()}") from error
    consumer = Consumer(
        {
            **properties,
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
