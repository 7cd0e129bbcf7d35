"""Compares Kafka's topics with their declaration, and rates each difference. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipeline.codec.durations import duration_text
from pipeline.kafka.topics.actual import ActualTopic
from pipeline.kafka.topics.declared import Topic, TopicKind

PARTITIONS = "partitions"
REPLICATION = "replication factor"
_MAY_HAVE_FEWER_PARTITIONS = (TopicKind.DEAD_LETTERS, TopicKind.LEDGER)


class Severity(StrEnum):
    """Reaction of a role to a difference."""

    BREAKS_PROMISE = "breaks the promise"
    """The role does not start."""
    REPORTED = "reported"
    """The role logs a warning and starts."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One topic differs in `setting`, which is a Kafka setting, PARTITIONS or REPLICATION.

    `consequence` describes the effect. With `is_needed`, another topic requires the `declared` value, not the file.
    """

    topic: str
    setting: str
    declared: str
    actual: str
    severity: Severity
    consequence: str = ""
    is_needed: bool = False

    @property
    def breaks_promise(self) -> bool:
        """True if no role may start."""
        return self.severity is Severity.BREAKS_PROMISE

    def __str__(self) -> str:
        actual, declared = (setting_text(self.setting, value) for value in (self.actual, self.declared))
        if actual == declared:  # rounded
            actual, declared = self.actual, self.declared
        text = f"{self.setting} is {actual}, {'needed' if self.is_needed else 'declared'} {declared}"
        return f"{text}: {self.consequence}" if self.consequence else text


def compare_topics(declared: Iterable[Topic], actual: Mapping[str, ActualTopic]) -> list[Difference]:
    """Return all differences of existing topics; those that break the delivery guarantee come first."""
    topics = {topic.name: topic for topic in declared}
    found = [
        difference
        for topic in topics.values()
        if topic.name in actual
        for difference in _differences(topic, actual[topic.name], required_partitions(topic, topics.values(), actual))
    ]
    return sorted(found, key=lambda difference: (not difference.breaks_promise, _in_order(topics[difference.topic])))


def required_partitions(topic: Topic, declared: Iterable[Topic], actual: Mapping[str, ActualTopic]) -> int:
    """Return the minimum number of partitions of `topic`: as declared, and for seen-hits as many as hits-raw has in Kafka."""
    if topic.kind is not TopicKind.SEEN_HITS:
        return topic.partitions
    raw = [actual[other.name] for other in declared if other.kind is TopicKind.HITS_RAW and other.name in actual]
    return max([topic.partitions, *(found.partitions for found in raw)])


def _in_order(topic: Topic) -> tuple[bool, str]:
    # Widen seen-hits before hits-raw, so that no router finds more partitions in hits-raw.
    return topic.kind is not TopicKind.SEEN_HITS, topic.name


def _differences(topic: Topic, actual: ActualTopic, required: int) -> Iterator[Difference]:
    # Nothing depends on the partition count of these topics, and dead-letters does not grow with hits-raw.
    has_enough = topic.kind in _MAY_HAVE_FEWER_PARTITIONS and actual.partitions < topic.partitions
    if not has_enough and (actual.partitions != topic.partitions or actual.partitions < required):
        yield _partitions(topic, actual.partitions, required)
    if actual.replication_factor != topic.replication_factor:
        fewer = actual.replication_factor < topic.replication_factor
        yield Difference(
            topic.name,
            REPLICATION,
            str(topic.replication_factor),
            str(actual.replication_factor),
            Severity.REPORTED,
            "fewer copies than declared" if fewer else "",
        )
    for setting, value in topic.settings.items():
        found = actual.settings.get(setting, value)
        if found != value:
            severity, consequence = _rate(topic, setting, value, found)
            yield Difference(topic.name, setting, value, found, severity, consequence)


def _partitions(topic: Topic, actual: int, required: int) -> Difference:
    severity, consequence, declared, is_needed = Severity.REPORTED, "", topic.partitions, False
    if actual < required and topic.kind is TopicKind.HITS_RAW:
        severity, declared = Severity.BREAKS_PROMISE, required
        consequence = "workers and front ends rely on the declared number"
    elif actual < required and topic.kind is TopicKind.SET_ASIDE:
        severity, consequence = (
            Severity.BREAKS_PROMISE,
            "each partition has its own wait, and workers write to all of them",
        )
    elif actual < required and topic.kind is TopicKind.SEEN_HITS:
        declared, is_needed = required, required > topic.partitions
        adds = "a router adds the missing partitions before it reads hits-raw"
        consequence = f"as many as hits-raw has; {adds}" if is_needed else adds
    elif actual > topic.partitions:
        consequence = "the others stay empty" if topic.kind is TopicKind.SET_ASIDE else "all of them are used"
    elif topic.kind is TopicKind.DELIVERIES:
        consequence = f"no more than {actual} workers can share the delivery"
    return Difference(topic.name, PARTITIONS, str(declared), str(actual), severity, consequence, is_needed)


def _rate(topic: Topic, setting: str, declared: str, actual: str) -> tuple[Severity, str]:
    """Return the severity and the consequence of `setting` being `actual`."""
    match setting:
        case "cleanup.policy" if "compact" in actual:
            return Severity.BREAKS_PROMISE, "compaction removes records before they are read"
        case "message.timestamp.type" if topic.kind is TopicKind.HITS_RAW:
            return Severity.BREAKS_PROMISE, "the dedupe window would follow the senders' clocks"
        case "message.timestamp.type":
            return Severity.REPORTED, "a worker whose clock is wrong shortens or prolongs the retention"
        case "min.insync.replicas" if int(actual) < int(declared):
            return Severity.BREAKS_PROMISE, "hits would be acknowledged with fewer copies than declared"
        case "min.insync.replicas":
            return Severity.REPORTED, "writing stops as soon as fewer replicas are in sync"
        case "retention.ms" if 0 <= int(actual) < topic.required_retention_ms:
            return Severity.BREAKS_PROMISE, "ids expire within the dedupe window, so duplicates would pass"
        case "retention.ms" if 0 <= int(actual) < int(declared):
            return Severity.REPORTED, "records expire sooner than declared"
        case "retention.ms":
            return Severity.REPORTED, "records are kept longer than declared"
        case "retention.bytes":
            return Severity.REPORTED, "records may expire by size, before their retention"
        case "segment.ms" if int(actual) > int(declared):
            return Severity.REPORTED, "retention removes whole segments, so records may stay that much longer"
        case _:
            return Severity.REPORTED, ""


def setting_text(setting: str, value: str) -> str:
    """Return the value in readable form: `7 d` for retention.ms=604800000, `unlimited` for -1."""
    if setting.endswith(".ms") and value.isdigit():
        return duration_text(int(value))
    return "unlimited" if setting.startswith("retention.") and value == "-1" else value or "empty"
