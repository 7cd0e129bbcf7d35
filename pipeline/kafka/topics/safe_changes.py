"""Changes of topics that take nothing away: what `hitrouter topics --apply` does. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.kafka.topics.actual import ActualTopic
from pipeline.kafka.topics.declared import Topic, TopicKind
from pipeline.kafka.topics.differences import PARTITIONS, Difference, required_partitions

_LONGER_IS_SAFE = ("retention.ms", "segment.ms")


@dataclass(frozen=True, slots=True)
class SafeChanges:
    """Topics to make, and by topic: settings to set, partitions to reach."""

    create: list[Topic]
    settings: dict[str, dict[str, str]]
    partitions: dict[str, int]

    def mends(self, difference: Difference) -> bool:
        """True when these changes make `difference` good."""
        if difference.setting == PARTITIONS:
            return difference.topic in self.partitions
        return difference.setting in self.settings.get(difference.topic, {})


def safe_changes(declared: Iterable[Topic], actual: Mapping[str, ActualTopic]) -> SafeChanges:
    """Return the safe changes: missing topics, longer retention, seen-hits as wide as hits-raw, and set-aside as wide as needed.

    Shorter retention is not among them, because it deletes records.
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
    """Return the topics to make; seen-hits as wide as hits-raw really is. Pure."""
    topics = list(declared)
    return [
        replace(topic, partitions=required_partitions(topic, topics, actual))
        for topic in topics
        if topic.name not in actual
    ]


def _longer(topic: Topic, actual: ActualTopic) -> dict[str, str]:
    pairs = {name: (int(topic.settings[name]), int(actual.settings[name])) for name in _LONGER_IS_SAFE}
    return {name: str(declared) for name, (declared, found) in pairs.items() if 0 <= found < declared}
