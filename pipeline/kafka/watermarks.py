"""Where the partitions of many topics begin and end, how far groups have read them, and which groups have members.

A question is one request for all topics or groups where that is safe, since a configuration may have dozens of connections.
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
"""How many groups are asked about at a time."""
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

    def topics(self) -> list[str]:
        """The names of all topics."""
        return list(self._patiently("the list of topics", self._partitions))

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

    def committed(self, topics: Mapping[str, str]) -> dict[str, dict[Place, int]]:
        """By group of `topics` what it reads next of its topic there, for each partition that it has committed.

        One consumer for each group: an AdminClient that asks for committed offsets crashes the process with a segmentation
        fault when the coordinator has moved, as after a restart of a broker (librdkafka issue 5040).
        """
        if not topics:
            return {}
        partitions = self._patiently("the partitions of the topics", self._partitions)

        def ask(group: str, topic: str) -> dict[Place, int]:
            asked = [TopicPartition(topic, number) for number in partitions.get(topic, ())]
            return self._committed_of(group, asked) if asked else {}

        with ThreadPoolExecutor(_CONSUMERS) as pool:
            return dict(zip(topics, pool.map(ask, topics.keys(), topics.values()), strict=True))

    def newest_ms(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """By partition the time of its newest record, in Unix milliseconds; a partition without records is left out."""

        def ask(timeout: float) -> dict[int, int]:
            asked = {TopicPartition(topic, number): OffsetSpec.max_timestamp() for number in partitions}
            futures = self._admin.list_offsets(asked, request_timeout=timeout)
            found = {tp.partition: future.result(timeout + 1).timestamp for tp, future in futures.items()}
            return {number: written_ms for number, written_ms in found.items() if written_ms >= 0}

        return self._patiently(f"the newest records of topic {topic}", ask) if partitions else {}

    def without_members(self, groups: Collection[str]) -> set[str]:
        """The groups among `groups` that no worker is a member of. A worker that was killed stays one for some seconds."""
        if not groups:
            return set()

        def ask(timeout: float) -> set[str]:
            described = self._admin.describe_consumer_groups(list(groups), request_timeout=timeout)
            return {group for group, future in described.items() if not future.result(timeout + 1).members}

        return self._patiently("the members of the groups", ask)

    def _partitions(self, timeout: float) -> dict[str, list[int]]:
        listed = self._admin.list_topics(timeout=timeout).topics
        return {name: list(found.partitions) for name, found in listed.items() if found.error is None}

    def _committed_of(self, group: str, asked: list[TopicPartition]) -> dict[Place, int]:
        # read_uncommitted: the answer does not wait for a transaction of the group that is still open.
        consumer = Consumer(client_properties(self._kafka, group__id=group, isolation__level="read_uncommitted"))
        try:
            found = self._patiently(
                f"the committed offsets of group {group}",
                lambda timeout: without_errors(consumer.committed(asked, timeout=timeout)),
            )
        finally:
            consumer.close()
        return {(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}

    def _patiently(self, what: str, ask: Callable[[float], T]) -> T:
        try:
            return in_slices(ask, self._patience_seconds)
        except KafkaException as error:
            raise unavailable(self._kafka, what, error) from error
        finally:
            self._admin.poll(0)  # serves the log callback
