"""Selects the changes of topics that delete nothing, which `hitrouter topics --apply` makes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.kafka.topics.actual import ActualTopic
from pipeline.kafka.topics.declared import Topic, TopicKind
from pipeline.kafka.topics.differences import PARTITIONS, Difference, required_partitions

_LONGER_IS_SAFE = ("retention.ms", "segment.ms")


@dataclass(frozen=True, slots=True)
class SafeChanges:
    """Topics to create, and settings and partition counts to set by topic."""

    create: list[Topic]
    settings: dict[str, dict[str, str]]
    partitions: dict[str, int]

    def fixes(self, difference: Difference) -> bool:
        """Return whether these changes fix `difference`."""
        if difference.setting == PARTITIONS:
            return difference.topic in self.partitions
        return difference.setting in self.settings.get(difference.topic, {})


def safe_changes(declared: Iterable[Topic], actual: Mapping[str, ActualTopic]) -> SafeChanges:
    """Return the safe changes: missing topics, longer retention, and missing partitions of seen-hits and set-aside.

    A shorter retention is not safe, because it deletes records.
    """
    topics = list(declared)
    settings: dict[str, dict[str, str]] = {}
    partitions: dict[str, int] = {}
    for topic in topics:
        found = actual.get(topic.name)
        if found is None:
            continue
        if longer := _longer(topic, found):
            settings[topic.name] = longer
        wanted = required_partitions(topic, topics, actual)
        if topic.kind in (TopicKind.SEEN_HITS, TopicKind.SET_ASIDE) and found.partitions < wanted:
            partitions[topic.name] = wanted
    return SafeChanges(missing_topics(topics, actual), settings, partitions)


def missing_topics(declared: Iterable[Topic], actual: Mapping[str, ActualTopic]) -> list[Topic]:
    """Return the topics to create; seen-hits with as many partitions as hits-raw has in Kafka."""
    topics = list(declared)
    return [
        replace(topic, partitions=required_partitions(topic, topics, actual))
        for topic in topics
        if topic.name not in actual
    ]


def _longer(topic: Topic, actual: ActualTopic) -> dict[str, str]:
    pairs = {name: (int(topic.settings[name]), int(actual.settings[name])) for name in _LONGER_IS_SAFE}
    return {name: str(declared) for name, (declared, found) in pairs.items() if 0 <= found < declared}
