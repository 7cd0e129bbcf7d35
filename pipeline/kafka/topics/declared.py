"""The topics, declared once (contract.md, section 2), and making and checking them at start."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable, TopicMismatch
from pipeline.kafka.client import client_properties

_DAY_MS = 86_400_000
_SEEN_SLACK_MS = _DAY_MS // 4


@dataclass(frozen=True, slots=True)
class Topic:
    """One declared topic; `settings` are Kafka's own topic settings as strings."""

    name: str
    partitions: int
    replication_factor: int
    settings: dict[str, str] = field(default_factory=dict)


class TopicNames:
    """The names of all topics under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.hits_raw = f"{prefix}hits-raw"
        self.dead_letters = f"{prefix}dead-letters"
        self.seen_hits = f"{prefix}seen-hits"
        self.ledger = f"{prefix}ledger"

    def deliveries(self, connection: str) -> str:
        """The topic of one connection."""
        return f"{self.prefix}deliveries-{connection}"


def declare_topics(config: Config) -> list[Topic]:
    """All topics that `config` needs."""
    kafka = config.kafka
    names = TopicNames(kafka.topic_prefix)
    factor = kafka.replication_factor
    window_ms = int(config.dedupe.window * 1000)
    durable = {"min.insync.replicas": str(max(1, factor - 1)), "compression.type": "producer"}
    # The window is on the broker's clock (contract.md, section 5), so that a sender's clock can't move it.
    raw = {**durable, "message.timestamp.type": "LogAppendTime", "retention.ms": str(max(7 * _DAY_MS, window_ms))}
    # The rebuild reads this topic whole: a segment is dropped only as a whole, so short segments keep it near the window.
    seen = {**durable, "retention.ms": str(window_ms + _SEEN_SLACK_MS), "segment.ms": str(max(60_000, window_ms // 8))}
    topics = [
        Topic(names.hits_raw, kafka.partitions, factor, raw),
        Topic(names.dead_letters, kafka.partitions, factor, {**durable, "retention.ms": str(30 * _DAY_MS)}),
        Topic(names.seen_hits, kafka.partitions, factor, seen),
        Topic(names.ledger, 1, factor, {**durable, "retention.ms": str(30 * _DAY_MS)}),
    ]
    for name, connection in config.connections.items():
        partitions = connection.partitions or kafka.partitions
        topics.append(Topic(names.deliveries(name), partitions, factor, {**durable, "retention.ms": str(7 * _DAY_MS)}))
    return topics


def ensure_topics(config: Config, timeout_seconds: float = 30.0) -> None:
    """Make the topics that are missing, and check the others.

    Raises TopicMismatch that lists every difference (nothing is changed), BrokerUnavailable when Kafka does not answer.
    """
    admin = AdminClient(client_properties(config.kafka))
    declared = {topic.name: topic for topic in declare_topics(config)}
    try:
        existing = admin.list_topics(timeout=timeout_seconds).topics
        missing = [topic for name, topic in declared.items() if name not in existing]
        for name, future in _create(admin, missing, timeout_seconds).items():
            try:
                future.result(timeout_seconds)
            except KafkaException as error:
                # Two roles that start together both see it missing.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BrokerUnavailable(f"topic {name} can't be created: {error.args[0].str()}") from error
        present = [topic for name, topic in declared.items() if name in existing]
        differences = _differences(admin, present, existing, timeout_seconds)
    except TimeoutError as error:
        admin.poll(0)  # what librdkafka has logged
        raise BrokerUnavailable(
            f"Kafka at {config.kafka.servers} did not answer within {timeout_seconds:.0f} s; is it running?"
        ) from error
    except KafkaException as error:
        admin.poll(0)
        raise BrokerUnavailable(
            f"Kafka at {config.kafka.servers} does not answer: {error.args[0].str()}; is it running?"
        ) from error
    if differences:
        raise TopicMismatch("topics differ from the configuration:\n  " + "\n  ".join(differences))


def _create(admin: AdminClient, missing: list[Topic], timeout_seconds: float) -> dict[str, Future[Any]]:
    if not missing:
        return {}
    new = [NewTopic(t.name, t.partitions, t.replication_factor, config=t.settings) for t in missing]
    return admin.create_topics(new, operation_timeout=timeout_seconds)


def _differences(admin: AdminClient, present: list[Topic], existing: object, timeout_seconds: float) -> list[str]:
    if not present:
        return []
    resources = {ConfigResource(ResourceType.TOPIC, topic.name): topic for topic in present}
    found = []
    for resource, future in admin.describe_configs(list(resources)).items():
        topic = resources[resource]
        actual = future.result(timeout_seconds)
        partitions = len(existing[topic.name].partitions)  # type: ignore[index]
        if partitions != topic.partitions:
            found.append(f"{topic.name}: {partitions} partitions, declared {topic.partitions}")
        for key, value in topic.settings.items():
            if key in actual and actual[key].value != value:
                found.append(f"{topic.name}: {key}={actual[key].value}, declared {value}")
    return sorted(found)
