"""Making and changing topics. Each call may be repeated: what is done already is no error."""

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
    """Make the `missing` topics; one that another process has made meanwhile is fine.

    Raises KafkaRefuses that says what to grant or to do, KafkaException when there is no answer within `patience_seconds`.
    """
    waiting = {topic.name: topic for topic in missing}

    def create(timeout_seconds: float) -> None:
        new = [NewTopic(t.name, t.partitions, t.replication_factor, config=dict(t.settings)) for t in waiting.values()]
        futures = admin.create_topics(new, operation_timeout=timeout_seconds, request_timeout=timeout_seconds)
        _take_out_done(waiting, futures, timeout_seconds, KafkaError.TOPIC_ALREADY_EXISTS)

    try:
        in_slices(create, patience_seconds)
    except _Refused as refused:
        raise _creation_refused(kafka, waiting[refused.topic], refused.error) from refused.error


def widen_topics(
    admin: AdminClient, kafka: KafkaConfig, partitions: Mapping[str, int], patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Give each topic this number of partitions, and wait until the broker asked shows them.

    Raises KafkaRefuses, KafkaException as `create_topics` does.
    """
    waiting = dict(partitions)

    def widen(timeout_seconds: float) -> None:
        # Kafka refuses a number that is there already, which the answer that got lost may have been about.
        for name, topic in read_actual(admin, kafka, waiting, timeout_seconds).items():
            if topic.partitions >= waiting[name]:
                del waiting[name]
        if waiting:
            new = [NewPartitions(name, count) for name, count in waiting.items()]
            futures = admin.create_partitions(new, operation_timeout=timeout_seconds, request_timeout=timeout_seconds)
            # The code for a number that another process has reached meanwhile.
            _take_out_done(waiting, futures, timeout_seconds, KafkaError.INVALID_PARTITIONS)

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
    """Set these settings of each topic, leave the others, and wait until the broker asked shows them.

    Raises KafkaRefuses, KafkaException as `create_topics` does.
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
            _take_out_done(waiting, by_name, timeout_seconds)

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
    """Return the topics of `names` once the broker asked has each, and `is_visible` holds for it.

    The controller acknowledges a change before every broker knows it. Raises BrokerUnavailable after `patience_seconds`.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        found = read_actual(admin, kafka, names, patience_seconds)
        late = [name for name in names if name not in found or not is_visible(found[name])]
        if not late:
            return found
        if time.monotonic() > deadline:
            raise BrokerUnavailable(
                f"Kafka at {kafka.servers} has made or changed {', '.join(late)}, but does not show it within "
                f"{patience_seconds:.0f} s; grant this principal Describe on it, or check the brokers"
            )
        time.sleep(_VISIBLE_PAUSE_SECONDS)


class _Refused(Exception):
    """Kafka refuses a change of `topic` for a reason that does not pass by itself."""

    def __init__(self, topic: str, error: KafkaException) -> None:
        super().__init__(topic)
        self.topic, self.error = topic, error


def _take_out_done(
    waiting: MutableMapping[str, Any],
    futures: Mapping[str, Future[Any]],
    timeout_seconds: float,
    done_code: int | None = None,
) -> None:
    """Take each topic out of `waiting` whose change is done. Raises _Refused, else the first error that passes by itself."""
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
    said = f"topic {topic.name} cannot be created: {error.args[0].str().rstrip('.')}."
    if error.args[0].code() in _NOT_PERMITTED:
        grant = grant_command(kafka, topic.name, ("Create", "Describe", "DescribeConfigs"))
        lines = [f"{said} Grant hitrouter's principal that, or create the topic yourself:", grant]
    else:
        lines = [f"{said} Create it yourself with settings that Kafka takes:"]
    return KafkaRefuses("\n  ".join([*lines, create_command(kafka, topic), *client_file_hint(kafka)]))


def _change_refused(kafka: KafkaConfig, refused: _Refused, what: str, operation: str) -> KafkaRefuses:
    said = f"topic {refused.topic} cannot {what}: {refused.error.args[0].str()}"
    if refused.error.args[0].code() not in _NOT_PERMITTED:
        return KafkaRefuses(said)
    lines = [f"{said} Grant that:", grant_command(kafka, refused.topic, (operation,)), *client_file_hint(kafka)]
    return KafkaRefuses("\n  ".join(lines))
