"""Compares the topics with the file for `hitrouter topics`, and makes the changes that an operator requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from confluent_kafka.admin import AdminClient

from pipeline.config.models import Config
from pipeline.errors import HitrouterError
from pipeline.kafka.client import client_properties, unavailable_on_error
from pipeline.kafka.offsets import PATIENCE_SECONDS
from pipeline.kafka.topics.actual import ActualTopic, list_names, read_actual
from pipeline.kafka.topics.changes import alter_settings, create_topics, wait_visible, widen_topics
from pipeline.kafka.topics.commands import fixes_for
from pipeline.kafka.topics.declared import Topic, TopicNames, declare_topics
from pipeline.kafka.topics.differences import Difference, compare_topics, setting_text
from pipeline.kafka.topics.safe_changes import SafeChanges, safe_changes
from pipeline.kafka.watermarks import ClusterReader, Place, Watermarks


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic. `declared` is None for a connection removed from the file, `actual` is None for a missing topic.

    `offsets` counts the offsets in Kafka, commit markers included; it is an upper bound of the records. `backlog` counts the
    offsets that the deliver workers have not read. It is only set for removed connections whose topic a worker has read.
    """

    name: str
    declared: Topic | None
    actual: ActualTopic | None
    offsets: int = 0
    backlog: int | None = None
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether the topic exists and keeps the delivery guarantee."""
        return self.actual is not None and not any(difference.breaks_promise for difference in self.differences)


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of the configuration, then those of removed connections. `safe` holds the changes that `--apply` would make."""

    states: list[TopicState]
    safe: SafeChanges

    @property
    def are_good(self) -> bool:
        """Whether no topic is missing and all keep the delivery guarantee."""
        return all(state.is_good for state in self.states)


class CannotShrink(HitrouterError):
    """The operator requested fewer partitions than there are, and Kafka cannot remove partitions."""


class MissingTopics(HitrouterError):
    """The topics to grow do not exist yet; the message says how to create them."""


def read_topics(config: Config, patience_seconds: float = PATIENCE_SECONDS) -> Topics:
    """Compare the topics with the file, and count their offsets. Raises BrokerUnavailable."""
    kafka, names = config.kafka, TopicNames(config.kafka.topic_prefix)
    declared = {topic.name: topic for topic in declare_topics(config)}
    admin = AdminClient(client_properties(kafka))
    with unavailable_on_error(kafka, "the list of topics"):
        left = [
            name
            for name in list_names(admin, patience_seconds)
            if names.connection_of(name) is not None and name not in declared
        ]
        actual = read_actual(admin, kafka, [*declared, *left], patience_seconds)
    cluster = ClusterReader(kafka, patience_seconds)
    marks = cluster.watermarks(actual)
    offsets: Counter[str] = Counter()
    for (topic, _), mark in marks.items():
        offsets[topic] += mark.end - mark.low
    differences = compare_topics(declared.values(), actual)
    states = [
        TopicState(
            name,
            topic,
            actual.get(name),
            offsets[name],
            differences=[difference for difference in differences if difference.topic == name],
        )
        for name, topic in declared.items()
    ]
    groups = {name: f"{names.prefix}deliver-{names.connection_of(name)}" for name in left}
    committed = cluster.committed({group: name for name, group in groups.items()})
    for name, group in groups.items():
        backlog = _backlog(name, marks, committed[group]) if committed[group] else None
        states.append(TopicState(name, None, actual[name], offsets[name], backlog))
    return Topics(states, safe_changes(declared.values(), actual))


def _backlog(topic: str, marks: Mapping[Place, Watermarks], committed: Mapping[Place, int]) -> int:
    return sum(
        mark.end - max(mark.low, committed.get(place, mark.low)) for place, mark in marks.items() if place[0] == topic
    )


def apply_safe_changes(config: Config, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[str]:
    """Make the safe changes, and yield a line for each one that is done. Raises BrokerUnavailable."""
    kafka, declared = config.kafka, {topic.name: topic for topic in declare_topics(config)}
    admin = AdminClient(client_properties(kafka))
    with unavailable_on_error(kafka, "the state of the topics"):
        actual = read_actual(admin, kafka, declared, patience_seconds)
        changes = safe_changes(declared.values(), actual)
        if changes.create:
            create_topics(admin, kafka, changes.create, patience_seconds)
            created = [topic.name for topic in changes.create]
            wait_visible(admin, kafka, created, lambda topic: True, patience_seconds)
            yield from (f"created {topic.name}: partitions {topic.partitions}" for topic in changes.create)
        for name, count in changes.partitions.items():
            widen_topics(admin, kafka, {name: count}, patience_seconds)
            yield f"widened {name}: partitions {actual[name].partitions} -> {count}"
        alter_settings(admin, kafka, changes.settings, patience_seconds)
        for name, settings in changes.settings.items():
            for setting, value in settings.items():
                former = setting_text(setting, actual[name].settings[setting])
                yield f"changed {name}: {setting} {former} -> {setting_text(setting, value)}"


def grow_partitions(
    config: Config, partitions: int, connection: str | None = None, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[str]:
    """Grow seen-hits and then hits-raw, or the topic of `connection`, to `partitions`. Yields a line for each growth.

    seen-hits grows first, so that no worker finds more partitions in hits-raw. Raises CannotShrink or MissingTopics before
    it changes anything, and BrokerUnavailable.
    """
    kafka, names = config.kafka, TopicNames(config.kafka.topic_prefix)
    wanted = [names.seen_hits, names.hits_raw] if connection is None else [names.deliveries(connection)]
    admin = AdminClient(client_properties(kafka))
    with unavailable_on_error(kafka, "the state of the topics"):
        actual = read_actual(admin, kafka, wanted, patience_seconds)
        missing = [name for name in wanted if name not in actual]
        if missing:
            raise MissingTopics(f"missing topics: {', '.join(missing)}; run `hitrouter topics --apply` to create them")
        last = actual[wanted[-1]]
        if last.partitions > partitions:
            raise CannotShrink(
                f"{last.name} has {last.partitions} partitions, and Kafka cannot remove partitions; "
                f"ask for more than {last.partitions}"
            )
        for name in wanted:
            if actual[name].partitions < partitions:
                widen_topics(admin, kafka, {name: partitions}, patience_seconds)
                yield f"widened {name}: partitions {actual[name].partitions} -> {partitions}"


def fixes_of(config: Config, topics: Topics, state: TopicState, difference: Difference) -> list[str]:
    """Return the commands that fix `difference`: `hitrouter topics --apply` if that is safe, else Kafka's own. Pure."""
    assert state.declared is not None and state.actual is not None
    return fixes_for(config.kafka, difference, state.declared, state.actual, topics.safe)
