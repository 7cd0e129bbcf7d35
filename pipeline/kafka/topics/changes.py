"""Creates and changes topics. Each call may be repeated; a change that is already done is not an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, MutableMapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable, KafkaRefuses
from pipeline.kafka.patience import PATIENCE_SECONDS, TEMPORARY, in_slices
from pipeline.kafka.topics.actual import ActualTopic, read_actual
from pipeline.kafka.topics.commands import create_command
from pipeline.kafka.topics.declared import Topic
from pipeline.kafka.topics.tools import client_file_hint, grant_command

_NOT_PERMITTED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
_VISIBLE_PAUSE_SECONDS = 0.1


def create_topics(
    admin: AdminClient, kafka: KafkaConfig, missing: Collection[Topic], patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Create the `missing` topics. A topic that another process creates in the meantime is not an error.

    Raises KafkaRefuses, which names the missing permission or the fix, and KafkaException after `patience_seconds`.
    """
    waiting = {topic.name: topic for topic in missing}

    def create(timeout_seconds: float) -> None:
        new = [NewTopic(t.name, t.partitions, t.replication_factor, config=dict(t.settings)) for t in waiting.values()]
        futures = admin.create_topics(new, operation_timeout=timeout_seconds, request_timeout=timeout_seconds)
        _remove_done(waiting, futures, timeout_seconds, KafkaError.TOPIC_ALREADY_EXISTS)

    try:
        in_slices(create, patience_seconds)
    except _Refused as refused:
        raise _creation_refused(kafka, waiting[refused.topic], refused.error) from refused.error


def widen_topics(
    admin: AdminClient, kafka: KafkaConfig, partitions: Mapping[str, int], patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Add partitions to each topic up to the given number, and wait until the broker returns them.

    Raises the errors of `create_topics`.
    """
    waiting = dict(partitions)

    def widen(timeout_seconds: float) -> None:
        # Kafka rejects a number that is already reached; an earlier request may have succeeded with its response lost.
        for name, topic in read_actual(admin, kafka, waiting, timeout_seconds).items():
            if topic.partitions >= waiting[name]:
                del waiting[name]
        if waiting:
            new = [NewPartitions(name, count) for name, count in waiting.items()]
            futures = admin.create_partitions(new, operation_timeout=timeout_seconds, request_timeout=timeout_seconds)
            # Error code if another process has reached the number in the meantime.
            _remove_done(waiting, futures, timeout_seconds, KafkaError.INVALID_PARTITIONS)

    try:
        in_slices(widen, patience_seconds)
    except _Refused as refused:
        raise _change_refused(kafka, refused, "be widened", "Alter") from refused.error
    wait_visible(admin, kafka, partitions, lambda topic: topic.partitions >= partitions[topic.name], patience_seconds)


def alter_settings(
    admin: AdminClient,
    kafka: KafkaConfig,
    settings: Mapping[str, Mapping[str, str]],
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """Change only the given settings of each topic, and wait until the broker returns them.

    Raises the errors of `create_topics`.
    """
    waiting = dict(settings)

    def alter(timeout_seconds: float) -> None:
        resources = [
            ConfigResource(
                ResourceType.TOPIC,
                name,
                incremental_configs=[
                    ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in new.items()
                ],
            )
            for name, new in waiting.items()
        ]
        if resources:
            futures = admin.incremental_alter_configs(resources, request_timeout=timeout_seconds)
            by_name = {resource.name: future for resource, future in futures.items()}
            _remove_done(waiting, by_name, timeout_seconds)

    try:
        in_slices(alter, patience_seconds)
    except _Refused as refused:
        raise _change_refused(kafka, refused, "be changed", "AlterConfigs") from refused.error
    wait_visible(
        admin, kafka, settings, lambda topic: settings[topic.name].items() <= topic.settings.items(), patience_seconds
    )


def wait_visible(
    admin: AdminClient,
    kafka: KafkaConfig,
    names: Collection[str],
    is_visible: Callable[[ActualTopic], bool],
    patience_seconds: float,
) -> dict[str, ActualTopic]:
    """Wait until the broker returns all topics of `names` and `is_visible` is true for each; return them.

    The controller acknowledges a change before all brokers know it. Raises BrokerUnavailable after `patience_seconds`.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        found = read_actual(admin, kafka, names, patience_seconds)
        late = [name for name in names if name not in found or not is_visible(found[name])]
        if not late:
            return found
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"Kafka at {kafka.servers} has created or changed {', '.join(late)}, but does not return the change within "
                f"{patience_seconds:.0f} s; grant this principal Describe on these topics, or check the brokers"
            )
        time.sleep(_VISIBLE_PAUSE_SECONDS)


class _Refused(Exception):
    """Kafka rejected a change of `topic` permanently."""

    def __init__(self, topic: str, error: KafkaException) -> None:
        super().__init__(topic)
        self.topic, self.error = topic, error


def _remove_done(
    waiting: MutableMapping[str, Any],
    futures: Mapping[str, Future[Any]],
    timeout_seconds: float,
    done_code: int | None = None,
) -> None:
    """Remove from `waiting` the topics whose change is done. Raises _Refused, else the first temporary error."""
    temporary: list[Exception] = []
    for name, future in futures.items():
        try:
            future.result(timeout_seconds + 1)
        except TimeoutError as error:
            temporary.append(error)
            continue
        except KafkaException as error:
            code = error.args[0].code()
            if code in TEMPORARY:
                temporary.append(error)
                continue
            if code != done_code:
                raise _Refused(name, error) from error
        del waiting[name]
    if temporary:
        raise temporary[0]


def _creation_refused(kafka: KafkaConfig, topic: Topic, error: KafkaException) -> KafkaRefuses:
    problem = f"topic {topic.name} cannot be created: {error.args[0].str().rstrip('.')}."
    if error.args[0].code() in _NOT_PERMITTED:
        grant = grant_command(kafka, topic.name, ("Create", "Describe", "DescribeConfigs"))
        lines = [f"{problem} Grant this permission to hitrouter's principal, or create the topic yourself:", grant]
    else:
        lines = [f"{problem} Create it yourself with settings that Kafka accepts:"]
    return KafkaRefuses("\n  ".join([*lines, create_command(kafka, topic), *client_file_hint(kafka)]))


def _change_refused(kafka: KafkaConfig, refused: _Refused, what: str, operation: str) -> KafkaRefuses:
    problem = f"topic {refused.topic} cannot {what}: {refused.error.args[0].str()}"
    if refused.error.args[0].code() not in _NOT_PERMITTED:
        return KafkaRefuses(problem)
    lines = [
        f"{problem} Grant this permission:",
        grant_command(kafka, refused.topic, (operation,)),
        *client_file_hint(kafka),
    ]
    return KafkaRefuses("\n  ".join(lines))
