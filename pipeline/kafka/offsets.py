"""Where a topic ends now."""

from __future__ import annotations

import time

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties, unavailable

PATIENCE_SECONDS = 10.0
"""How long whoever asks at a terminal waits for a Kafka that may not be running."""
_PAUSE_SECONDS = 0.1
# A topic that was just made, or whose leader just changed, answers with these for a moment.
_PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._ALL_BROKERS_DOWN,
}


def end_offsets(
    kafka: KafkaConfig, topic: str, committed: bool, patience_seconds: float = PATIENCE_SECONDS
) -> dict[int, int]:
    """By partition the offset behind the last record; with `committed` before the first open transaction.

    Raises BrokerUnavailable when there is no answer within `patience_seconds`.
    """
    admin = AdminClient(client_properties(kafka))
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            found = admin.list_topics(topic, timeout=patience_seconds).topics[topic]
            if found.error is not None:
                raise KafkaException(found.error)
            wanted = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in found.partitions}
            futures = admin.list_offsets(wanted, isolation_level=level, request_timeout=patience_seconds)
            return {tp.partition: future.result().offset for tp, future in futures.items()}
        except KafkaException as error:
            admin.poll(0)  # what librdkafka has logged
            if error.args[0].code() not in _PASSING or time.monotonic() > deadline:
                raise unavailable(kafka, f"the end of topic {topic}", error) from error
            time.sleep(_PAUSE_SECONDS)
