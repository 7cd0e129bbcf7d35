"""Reads how many partitions a topic has, and how many of them a consumer group reads."""

from __future__ import annotations

from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription

from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties, unavailable_on_error
from pipeline.kafka.patience import in_slices

PATIENCE_SECONDS = 10.0


def partition_count(kafka: KafkaConfig, topic: str, patience_seconds: float = PATIENCE_SECONDS) -> int:
    """Return how many partitions `topic` has. Raises BrokerUnavailable if Kafka does not respond within `patience_seconds`."""
    admin = AdminClient(client_properties(kafka))
    with unavailable_on_error(kafka, f"the partitions of topic {topic}"):
        return in_slices(lambda timeout: _count(admin, topic, timeout), patience_seconds)


def assigned_count(
    kafka: KafkaConfig, group: str, topic: str, patience_seconds: float = PATIENCE_SECONDS
) -> int | None:
    """Return how many partitions of `topic` the members of `group` read in the current generation; None during a rebalance.

    Asks the group coordinator, whose answer is the same for all members of a generation. The metadata of a single member
    may be older or newer than the metadata of the group leader that made the assignment. Raises BrokerUnavailable.
    """
    admin = AdminClient(client_properties(kafka))

    def ask(timeout: float) -> int | None:
        future = admin.describe_consumer_groups([group], request_timeout=timeout)[group]
        found: ConsumerGroupDescription = future.result(timeout)
        if found.state != ConsumerGroupState.STABLE:
            return None
        assigned = (tp for member in found.members for tp in member.assignment.topic_partitions)
        return 1 + max((tp.partition for tp in assigned if tp.topic == topic), default=-1)

    with unavailable_on_error(kafka, f"the assignment of group {group}"):
        return in_slices(ask, patience_seconds)


def _count(admin: AdminClient, topic: str, timeout_seconds: float) -> int:
    found = admin.list_topics(topic, timeout=timeout_seconds).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    return len(found.partitions)
