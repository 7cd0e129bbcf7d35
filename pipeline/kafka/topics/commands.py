"""Returns commands that fix a difference: those of hitrouter if that is safe, else Kafka's own. Pure."""

from __future__ import annotations

import shlex

from pipeline.config.models import KafkaConfig
from pipeline.kafka.topics.actual import ActualTopic
from pipeline.kafka.topics.declared import Topic, TopicKind
from pipeline.kafka.topics.differences import PARTITIONS, REPLICATION, Difference
from pipeline.kafka.topics.safe_changes import SafeChanges
from pipeline.kafka.topics.tools import tool_command


def create_command(kafka: KafkaConfig, topic: Topic) -> str:
    """Return the command that creates `topic` as declared."""
    settings = [f"--config {shlex.quote(f'{name}={value}')}" for name, value in topic.settings.items()]
    size = f"--partitions {topic.partitions} --replication-factor {topic.replication_factor}"
    return " ".join([tool_command("kafka-topics.sh", kafka), "--create --topic", topic.name, size, *settings])


def fixes_for(
    kafka: KafkaConfig, difference: Difference, topic: Topic, actual: ActualTopic, safe: SafeChanges
) -> list[str]:
    """Return how to fix `difference` of `topic`: `hitrouter topics --apply` if it does, else `commands_for`."""
    return ["hitrouter topics --apply"] if safe.fixes(difference) else commands_for(kafka, difference, topic, actual)


def commands_for(kafka: KafkaConfig, difference: Difference, topic: Topic, actual: ActualTopic) -> list[str]:
    """Return how to fix `difference` of `topic`, in order: commands, or sentences if Kafka has no command."""
    if difference.setting == PARTITIONS:
        if int(difference.declared) > actual.partitions:
            alter = f"--alter --topic {topic.name} --partitions {difference.declared}"
            command = f"{tool_command('kafka-topics.sh', kafka)} {alter}"
            if topic.kind is TopicKind.HITS_RAW:
                return [f"hitrouter topics --partitions {difference.declared}, or once seen-hits has as many:", command]
            if topic.kind is TopicKind.DELIVERIES:
                ours = f"hitrouter topics --connection {topic.connection} --partitions {difference.declared}"
                return [ours, f"or {_partitions_in_the_file(topic, actual.partitions)}"]
            return [command]
        return [_in_the_file(topic, actual.partitions)]
    if difference.setting == REPLICATION:
        reassign = f"{tool_command('kafka-reassign-partitions.sh', kafka)} --reassignment-json-file PLAN --execute"
        return [f"{_factor_in_the_file(actual)}, or move the replicas with a reassignment plan: {reassign}"]
    alter = f"--alter --entity-type topics --entity-name {topic.name}"
    setting = shlex.quote(f"{difference.setting}={difference.declared}")
    command = f"{tool_command('kafka-configs.sh', kafka)} {alter} --add-config {setting}"
    if difference.setting == "min.insync.replicas" and actual.replication_factor < int(difference.declared):
        return [f"{_factor_in_the_file(actual)}, because there are no more replicas; or add replicas, then:", command]
    return [command]


def _factor_in_the_file(actual: ActualTopic) -> str:
    return f"set kafka.replication_factor: {actual.replication_factor} in the file"


def _in_the_file(topic: Topic, partitions: int) -> str:
    text = "Kafka cannot remove partitions"
    if topic.kind in (TopicKind.HITS_RAW, TopicKind.SEEN_HITS, TopicKind.DELIVERIES):
        return f"{text}; {_partitions_in_the_file(topic, partitions)}"
    return f"{text}; no action is needed"


def _partitions_in_the_file(topic: Topic, partitions: int) -> str:
    section = f"connections.{topic.connection}" if topic.kind is TopicKind.DELIVERIES else "kafka"
    return f"set {section}.partitions: {partitions} in the file"
