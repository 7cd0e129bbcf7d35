"""Where the partitions of many topics begin and end, how far groups have read them, and which groups have members.

Each question is one request for all topics or groups, since a configuration may have dozens of connections.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties, unavailable
from pipeline.kafka.offsets import PATIENCE_SECONDS, list_offsets, without_errors
from pipeline.kafka.patience import in_slices

Place = tuple[str, int]
"""A topic and a partition."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Watermarks:
    """`low` <= offset < `end` is what a partition holds; from `stable_end` on, records belong to open transactions."""

    low: int
    stable_end: int
    end: int


class Asking:
    """Asks one Kafka. Every method blocks, and raises BrokerUnavailable when there is no answer within the patience."""

    def __init__(self, kafka: KafkaConfig, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._kafka = kafka
        self._patience_seconds = patience_seconds
        self._admin = AdminClient(client_properties(kafka))

    def watermarks(self, topics: Collection[str]) -> dict[Place, Watermarks]:
        """The watermarks of each partition; a topic that does not exist has none."""

        def ask(timeout: float) -> dict[Place, Watermarks]:
            listed = self._admin.list_topics(timeout=timeout).topics
            asked = [
                TopicPartition(name, partition)
                for name in topics
                if name in listed and listed[name].error is None
                for partition in listed[name].partitions
            ]
            if not asked:
                return {}
            # In this order, because all of them only rise: low <= stable end <= end holds.
            lows, stable, ends = (
                list_offsets(self._admin, asked, spec, level, timeout)
                for spec, level in (
                    (OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED),
                    (OffsetSpec.latest(), IsolationLevel.READ_COMMITTED),
                    (OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED),
                )
            )
            return {
                place: Watermarks(low, max(low, stable[place]), max(low, stable[place], ends[place]))
                for place, low in lows.items()
            }

        return self._patiently("the watermarks of the topics", ask)

    def committed(self, groups: Collection[str]) -> dict[str, dict[Place, int]]:
        """By group what it reads next, of the partitions that it has committed; nothing for a group that is not there."""

        def ask(timeout: float) -> dict[str, dict[Place, int]]:
            asked = {
                group: self._admin.list_consumer_group_offsets(
                    [ConsumerGroupTopicPartitions(group)], request_timeout=timeout
                )[group]
                for group in groups
            }
            return {group: _committed_of(future, timeout) for group, future in asked.items()}

        return self._patiently("what the groups have read", ask)

    def without_members(self, groups: Collection[str]) -> set[str]:
        """The groups among `groups` that no worker is a member of. A worker that was killed stays one for some seconds."""
        if not groups:
            return set()

        def ask(timeout: float) -> set[str]:
            described = self._admin.describe_consumer_groups(list(groups), request_timeout=timeout)
            return {group for group, future in described.items() if not future.result(timeout + 1).members}

        return self._patiently("the members of the groups", ask)

    def _patiently(self, what: str, ask: Callable[[float], T]) -> T:
        try:
            return in_slices(ask, self._patience_seconds)
        except KafkaException as error:
            raise unavailable(self._kafka, what, error) from error
        finally:
            self._admin.poll(0)  # serves the log callback


def _committed_of(future: Future[Any], timeout: float) -> dict[Place, int]:
    try:
        found = without_errors(future.result(timeout + 1).topic_partitions)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return {}
        raise
    return {(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}
