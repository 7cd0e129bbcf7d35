"""Reads watermarks of many topics, committed offsets of many groups, and which groups have members.

Uses one request for all topics or groups where that is safe, since a configuration may have dozens of connections.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties, unavailable
from pipeline.kafka.offsets import PATIENCE_SECONDS, list_offsets, without_errors
from pipeline.kafka.patience import in_slices

Place = tuple[str, int]
"""A topic and a partition."""
_CONSUMERS = 8
"""How many groups are read in parallel."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Watermarks:
    """A partition holds `low` <= offset < `end`; from `stable_end` on, records may belong to open transactions."""

    low: int
    stable_end: int
    end: int


class ClusterReader:
    """Reads the state of a cluster. Methods block; they raise BrokerUnavailable after `patience_seconds`."""

    def __init__(self, kafka: KafkaConfig, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._kafka = kafka
        self._patience_seconds = patience_seconds
        self._admin = AdminClient(client_properties(kafka))

    def topics(self) -> list[str]:
        """Return the names of all topics."""
        return list(self._with_retries("the list of topics", self._partitions))

    def watermarks(self, topics: Collection[str]) -> dict[Place, Watermarks]:
        """Return the watermarks of each partition; topics that do not exist are left out."""

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
            # All three only rise, so reading them in this order ensures low <= stable end <= end.
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

        return self._with_retries("the watermarks of the topics", ask)

    def committed(self, topics: Mapping[str, str]) -> dict[str, dict[Place, int]]:
        """Return the committed offsets by group and partition. `topics` maps each group to its topic.

        Uses one consumer per group: an AdminClient that reads committed offsets crashes with a segmentation fault if the
        group coordinator has moved, such as after a broker restart (librdkafka issue 5040).
        """
        if not topics:
            return {}
        partitions = self._with_retries("the partitions of the topics", self._partitions)

        def ask(group: str, topic: str) -> dict[Place, int]:
            asked = [TopicPartition(topic, number) for number in partitions.get(topic, ())]
            return self._committed_of(group, asked) if asked else {}

        with ThreadPoolExecutor(_CONSUMERS) as pool:
            return dict(zip(topics, pool.map(ask, topics.keys(), topics.values()), strict=True))

    def newest_ms(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """Return the time of the newest record of each partition in Unix milliseconds; empty partitions are left out."""

        def ask(timeout: float) -> dict[int, int]:
            asked = {TopicPartition(topic, number): OffsetSpec.max_timestamp() for number in partitions}
            futures = self._admin.list_offsets(asked, request_timeout=timeout)
            found = {tp.partition: future.result(timeout + 1).timestamp for tp, future in futures.items()}
            return {number: written_ms for number, written_ms in found.items() if written_ms >= 0}

        return self._with_retries(f"the newest records of topic {topic}", ask) if partitions else {}

    def without_members(self, groups: Collection[str]) -> set[str]:
        """Return those of `groups` that have no members. A killed worker stays a member for some seconds."""
        if not groups:
            return set()

        def ask(timeout: float) -> set[str]:
            described = self._admin.describe_consumer_groups(list(groups), request_timeout=timeout)
            return {group for group, future in described.items() if not future.result(timeout + 1).members}

        return self._with_retries("the members of the groups", ask)

    def _partitions(self, timeout: float) -> dict[str, list[int]]:
        listed = self._admin.list_topics(timeout=timeout).topics
        return {name: list(found.partitions) for name, found in listed.items() if found.error is None}

    def _committed_of(self, group: str, asked: list[TopicPartition]) -> dict[Place, int]:
        # read_uncommitted: the response does not wait for an open transaction of the group.
        consumer = Consumer(client_properties(self._kafka, group__id=group, isolation__level="read_uncommitted"))
        try:
            found = self._with_retries(
                f"the committed offsets of group {group}",
                lambda timeout: without_errors(consumer.committed(asked, timeout=timeout)),
            )
        finally:
            consumer.close()
        return {(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}

    def _with_retries(self, what: str, ask: Callable[[float], T]) -> T:
        try:
            return in_slices(ask, self._patience_seconds)
        except KafkaException as error:
            raise unavailable(self._kafka, what, error) from error
        finally:
            self._admin.poll(0)  # runs the log callback
