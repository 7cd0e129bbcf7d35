"""How many partitions a topic has, how many of them a consumer group reads, and adding some."""

from __future__ import annotations

import logging

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription, NewPartitions

from pipeline.config.models import KafkaConfig
from pipeline.errors import WorkerMustRestart
from pipeline.kafka.client import answering, client_properties
from pipeline.kafka.patience import in_slices

logger = logging.getLogger("hitrouter.kafka.partitions")

PATIENCE_SECONDS = 10.0


def partition_count(kafka: KafkaConfig, topic: str, patience_seconds: float = PATIENCE_SECONDS) -> int:
    """Return how many partitions `topic` has now. Raises BrokerUnavailable without an answer within `patience_seconds`."""
    admin = AdminClient(client_properties(kafka))
    with answering(kafka, f"the partitions of topic {topic}"):
        return in_slices(lambda timeout: _count(admin, topic, timeout), patience_seconds)


def assigned_count(
    kafka: KafkaConfig, group: str, topic: str, patience_seconds: float = PATIENCE_SECONDS
) -> int | None:
    """Return how many partitions of `topic` the members of `group` read in the present generation; None during a rebalance.

    The coordinator's answer is the same for all members of a generation, while the metadata that a member has may be
    older or newer than those of the leader, which made the assignment. Raises BrokerUnavailable.
    """
    admin = AdminClient(client_properties(kafka))

    def ask(timeout: float) -> int | None:
        future = admin.describe_consumer_groups([group], request_timeout=timeout)[group]
        found: ConsumerGroupDescription = future.result(timeout)
        if found.state != ConsumerGroupState.STABLE:
            return None
        assigned = (tp for member in found.members for tp in member.assignment.topic_partitions)
        return 1 + max((tp.partition for tp in assigned if tp.topic == topic), default=-1)

    with answering(kafka, f"the assignment of group {group}"):
        return in_slices(ask, patience_seconds)


def grow_topic(kafka: KafkaConfig, topic: str, partitions: int, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Give `topic` at least `partitions` partitions, and return once they are visible. May run in several processes at once.

    Raises BrokerUnavailable without an answer within `patience_seconds`, and WorkerMustRestart when Kafka refuses.
    """
    admin = AdminClient(client_properties(kafka))

    def grow(timeout: float) -> None:
        before = _count(admin, topic, timeout)
        if before >= partitions:
            return
        logger.info("topic grows: topic=%s partitions=%d new_partitions=%d", topic, before, partitions)
        new = [NewPartitions(topic, partitions)]
        try:
            admin.create_partitions(new, operation_timeout=timeout, request_timeout=timeout)[topic].result(timeout)
        except KafkaException as error:
            # Another process has made them meanwhile.
            if error.args[0].code() != KafkaError.INVALID_PARTITIONS:
                raise
        if _count(admin, topic, timeout) < partitions:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, "new partitions are not visible yet"))

    try:
        in_slices(grow, patience_seconds)
    except KafkaException as error:
        raise WorkerMustRestart(
            f"topic {topic} needs {partitions} partitions and cannot get them: {error.args[0].str()}; run "
            f"`kafka-topics.sh --bootstrap-server {kafka.servers} --alter --topic {topic} --partitions {partitions}`"
        ) from error


def _count(admin: AdminClient, topic: str, timeout_seconds: float) -> int:
    found = admin.list_topics(topic, timeout=timeout_seconds).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    return len(found.partitions)
