"""The topics as Kafka has them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import answering, client_properties
from pipeline.kafka.patience import PATIENCE_SECONDS, in_slices


@dataclass(frozen=True, slots=True)
class ActualTopic:
    """One topic as it is; `settings` holds Kafka's settings in effect, defaults of the broker included."""

    name: str
    partitions: int
    replication_factor: int
    settings: dict[str, str]

    @property
    def retention_ms(self) -> int | None:
        """How long records are kept at least, in milliseconds; None: for ever."""
        value = int(self.settings["retention.ms"])
        return value if value >= 0 else None


def read_actual(
    admin: AdminClient, wanted: Collection[str] | None, patience_seconds: float = PATIENCE_SECONDS
) -> dict[str, ActualTopic]:
    """The topics among `wanted` that exist, by name; every topic of the cluster where `wanted` is None.

    Raises KafkaException when Kafka does not answer within `patience_seconds`, or refuses.
    """
    listed = in_slices(lambda timeout: admin.list_topics(timeout=timeout), patience_seconds).topics
    found = {
        name: topic for name, topic in listed.items() if topic.error is None and (wanted is None or name in wanted)
    }
    if not found:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in found]

    def describe(timeout: float) -> dict[str, dict[str, str]]:
        futures = admin.describe_configs(resources, request_timeout=timeout)
        described = {resource.name: future.result(timeout + 1) for resource, future in futures.items()}
        return {name: {key: entry.value or "" for key, entry in got.items()} for name, got in described.items()}

    settings = in_slices(describe, patience_seconds)
    return {
        name: ActualTopic(
            name,
            len(topic.partitions),
            min((len(partition.replicas) for partition in topic.partitions.values()), default=0),
            settings[name],
        )
        for name, topic in found.items()
    }


def topic_retention_ms(
    kafka: KafkaConfig, topics: Collection[str], patience_seconds: float = PATIENCE_SECONDS
) -> dict[str, int | None]:
    """The retention in effect of each topic that exists, in milliseconds; None: for ever.

    Kafka keeps a record at least so long, counted from its time stamp, and removes whole segments later. Raises BrokerUnavailable.
    """
    admin = AdminClient(client_properties(kafka))
    with answering(kafka, "the retention of the topics"):
        return {name: topic.retention_ms for name, topic in read_actual(admin, topics, patience_seconds).items()}
