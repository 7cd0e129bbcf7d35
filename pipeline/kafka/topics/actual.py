"""Reads topics and their settings from Kafka."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType, TopicMetadata

from pipeline.config.models import KafkaConfig
from pipeline.errors import KafkaRefuses
from pipeline.kafka.client import client_properties, unavailable_on_error
from pipeline.kafka.patience import PATIENCE_SECONDS, in_slices
from pipeline.kafka.topics.tools import client_file_hint, grant_command


@dataclass(frozen=True, slots=True)
class ActualTopic:
    """One topic in Kafka; `settings` holds all settings in effect, including the broker's defaults."""

    name: str
    partitions: int
    replication_factor: int
    settings: dict[str, str]

    @property
    def retention_ms(self) -> int | None:
        """Minimum time for which records are kept, in milliseconds; None means without limit."""
        value = int(self.settings["retention.ms"])
        return value if value >= 0 else None


def read_actual(
    admin: AdminClient, kafka: KafkaConfig, names: Collection[str], patience_seconds: float = PATIENCE_SECONDS
) -> dict[str, ActualTopic]:
    """Return those topics of `names` that exist and that this principal may describe.

    Raises KafkaRefuses if this principal may not read their settings, and KafkaException after `patience_seconds`.
    """
    if not names:
        return {}
    listed = in_slices(lambda timeout: _list(admin, timeout), patience_seconds)
    found = {name: topic for name, topic in listed.items() if name in names and topic.error is None}
    settings = in_slices(lambda timeout: _settings(admin, kafka, found, timeout), patience_seconds)
    return {
        name: ActualTopic(
            name,
            len(topic.partitions),
            min((len(partition.replicas) for partition in topic.partitions.values()), default=0),
            settings[name],
        )
        for name, topic in found.items()
    }


def list_names(admin: AdminClient, patience_seconds: float = PATIENCE_SECONDS) -> list[str]:
    """Return the sorted names of all topics that this principal may describe. Raises KafkaException without a response."""
    return sorted(in_slices(lambda timeout: _list(admin, timeout), patience_seconds))


def topic_retention_ms(
    kafka: KafkaConfig, topics: Collection[str], patience_seconds: float = PATIENCE_SECONDS
) -> dict[str, int | None]:
    """Return the retention of each existing topic in milliseconds; None means without limit.

    This is a minimum, counted from the timestamp of a record: Kafka later deletes whole segments. Raises BrokerUnavailable.
    """
    admin = AdminClient(client_properties(kafka))
    with unavailable_on_error(kafka, "the retention of the topics"):
        return {name: topic.retention_ms for name, topic in read_actual(admin, kafka, topics, patience_seconds).items()}


def _list(admin: AdminClient, timeout_seconds: float) -> dict[str, TopicMetadata]:
    try:
        listed: dict[str, TopicMetadata] = admin.list_topics(timeout=timeout_seconds).topics
        return listed
    finally:
        admin.poll(0)  # runs the log callback, which shows why there is no response


def _settings(
    admin: AdminClient, kafka: KafkaConfig, names: Collection[str], timeout_seconds: float
) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    settings = {}
    for resource, future in admin.describe_configs(resources, request_timeout=timeout_seconds).items():
        try:
            found = future.result(timeout_seconds + 1)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise
            grant = grant_command(kafka, resource.name, ("DescribeConfigs",))
            lines = [
                f"the settings of topic {resource.name} cannot be read: {error.args[0].str()} Grant this permission:",
                grant,
            ]
            raise KafkaRefuses("\n  ".join([*lines, *client_file_hint(kafka)])) from error
        settings[resource.name] = {name: entry.value or "" for name, entry in found.items()}
    return settings
