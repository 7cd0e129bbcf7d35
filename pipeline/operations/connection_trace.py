"""What became of one hit at each connection: delivered, dead, waiting and why, or taken by retention before delivery."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import Message

from pipeline.codec.ledger_entry import decode_ledger_entry
from pipeline.codec.raw_record import partition_of
from pipeline.codec.routed_hit import time_text
from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames, topic_retention_ms
from pipeline.kafka.watermarks import ClusterReader, Place, Watermarks
from pipeline.operations.ledger_pauses import Pause, note_pause
from pipeline.operations.moments import duration_text
from pipeline.operations.read_topic import header_texts, read_topic
from pipeline.operations.record_fate import RecordFate
from pipeline.operations.set_aside import set_aside_group


@dataclass(frozen=True, slots=True)
class ConnectionTrace:
    """One connection's part: `state` is delivered, pending, on its topic, dead, expired, or why it was filtered or skipped."""

    connection: str
    state: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """How far groups have read, where topics begin and end, and which groups have no member, at one moment.

    `left_connections` have a topic and are not in the file.
    """

    committed: Mapping[str, Mapping[Place, int]]
    marks: Mapping[Place, Watermarks]
    idle_groups: Collection[str]
    left_connections: Sequence[str] = ()

    def next_offset(self, group: str, place: Place) -> int:
        """What `group` reads next."""
        return self.committed.get(group, {}).get(place, 0)

    def partitions(self, topic: str) -> list[int]:
        """The partitions of `topic`; none while it does not exist."""
        return sorted(place[1] for place in self.marks if place[0] == topic)


def ask_kafka(config: Config) -> Reading:
    """The offsets and members of all groups of `config`. Raises BrokerUnavailable."""
    names = TopicNames(config.kafka.topic_prefix)
    cluster = ClusterReader(config.kafka)
    found = sorted(filter(None, map(names.connection_of, cluster.topics())))
    left = [name for name in found if name not in config.connections]
    connections = [*config.connections, *left]
    groups = [route_group(names), set_aside_group(names), *(deliver_group(names, name) for name in connections)]
    topics = [names.hits_raw, names.set_aside, *map(names.deliveries, connections)]
    return Reading(
        cluster.committed(dict(zip(groups, topics, strict=True))),
        cluster.watermarks(topics),
        cluster.without_members(groups),
        left,
    )


def route_group(names: TopicNames) -> str:
    """The consumer group of the routers."""
    return f"{names.prefix}route"


def deliver_group(names: TopicNames, connection: str) -> str:
    """The consumer group of the workers that deliver to `connection`."""
    return f"{names.prefix}deliver-{connection}"


@dataclass(slots=True)
class Unread:
    """Counts the unread records of a topic while it is read, to know how many are before one of them in its partition."""

    reading: Reading
    group: str
    _counts: Counter[int] = field(default_factory=Counter)

    def ahead_of(self, record: Message) -> int | None:
        """How many unread records of its partition come before `record`; None when it was read. Call once for each record, in order."""
        partition, offset = record.partition() or 0, record.offset() or 0
        if offset < self.reading.next_offset(self.group, (record.topic() or "", partition)):
            return None
        self._counts[partition] += 1
        return self._counts[partition] - 1


def place_in_line(ahead: int) -> str:
    """Where a hit stands that nobody has read yet."""
    if not ahead:
        return "the next in its partition"
    return f"behind {ahead:,} {'other' if ahead == 1 else 'others'} in its partition"


@dataclass(frozen=True, slots=True)
class OnTopic:
    """A record of the hit on a deliveries topic; `ahead` is None when it was read, else how many unread ones come before it.

    `version` is "" where the record has no header `config-version`, such as a dead letter that was resent.
    """

    partition: int
    offset: int
    written_ms: int
    version: str
    ahead: int | None

    @classmethod
    def of(cls, record: Message, ahead: int | None) -> OnTopic:
        """What is kept of a record."""
        return cls(
            record.partition() or 0,
            record.offset() or 0,
            record.timestamp()[1],
            header_texts(record).get("config-version", ""),
            ahead,
        )


@dataclass(frozen=True, slots=True)
class Gone:
    """A hit that the file of now routes to `connection`, and whose record may have been taken by retention.

    `partition` is the one of its key; `fate` is None where nobody but the readers of the topic would know.
    """

    connection: str
    partition: int
    fate: RecordFate | None

    def trace(self, config: Config) -> ConnectionTrace:
        """What is known, once the ledger was read."""
        topic = TopicNames(config.kafka.topic_prefix).deliveries(self.connection)
        where = (
            f"by its key it was on {topic}-{self.partition}, if it was routed here, and retention has taken its record"
        )
        if self.fate is None:
            return ConnectionTrace(self.connection, "no longer on its topic", (where,))
        match self.fate.fate:
            case "expired":
                held = "; a worker that holds it in memory may still deliver it" if self.fate.may_be_held else ""
                return ConnectionTrace(
                    self.connection, "expired before delivery", (where, f"no delivery of it is recorded{held}")
                )
            case "read":
                return ConnectionTrace(self.connection, "delivered or skipped", (where, "it was settled before that"))
            case "unknown":
                why = "the ledger does not show whether it was settled before that"
                return ConnectionTrace(self.connection, "delivered, skipped or expired", (where, why))
            case "never there":
                return ConnectionTrace(self.connection, NOT_ROUTED)


NOT_ROUTED = "not routed, by a version of the file that did not choose it"


def gone(
    config: Config, reading: Reading, connection: str, identity: str, routed_from_ms: int, has_sink: bool
) -> Gone | None:
    """None when retention cannot have taken the record of a hit: then it was never there."""
    names = TopicNames(config.kafka.topic_prefix)
    topic = names.deliveries(connection)
    count = len(reading.partitions(topic))
    if not count:
        return None
    place = (topic, partition_of(identity.encode(), count))
    low = reading.marks[place].low
    if not low:
        return None
    next_offset = reading.next_offset(deliver_group(names, connection), place)
    return Gone(connection, place[1], RecordFate(routed_from_ms, low, next_offset) if has_sink else None)


def read_notes(config: Config, missing: Sequence[Gone]) -> dict[str, Pause]:
    """Read the ledger once: returns the connections that wait, and tells `missing` what became of their records."""
    names = TopicNames(config.kafka.topic_prefix)
    fates = {(names.deliveries(one.connection), one.partition): one.fate for one in missing}
    pauses: dict[str, Pause] = {}
    for record in read_topic(config.kafka, names.ledger):
        entry = decode_ledger_entry(record.value() or b"")
        note_pause(pauses, entry)
        fate = fates.get((entry.topic, entry.partition)) if entry.role == "deliver" else None
        if fate is not None:
            fate.add(entry)
    return pauses


def why_pending(
    config: Config, reading: Reading, pauses: Mapping[str, Pause], connection: str, waiting: Sequence[OnTopic]
) -> Iterator[str]:
    """The reasons why records of `connection` still wait, where they stand, and when they expire."""
    names = TopicNames(config.kafka.topic_prefix)
    if deliver_group(names, connection) in reading.idle_groups:
        yield "no worker delivers: start `hitrouter deliver`"
    pause = pauses.get(connection)
    if pause is not None:
        kind = "misconfigured" if pause.is_misconfigured else "failing"
        yield f"{kind} since {time_text(pause.since_ms)}: {pause.message}"
    topic = names.deliveries(connection)
    retention_ms = topic_retention_ms(config.kafka, [topic]).get(topic)
    for record in waiting:
        yield place_in_line(record.ahead or 0)
        if retention_ms is not None:
            left_seconds = (record.written_ms + retention_ms) / 1000 - time.time()
            yield f"expires in {duration_text(left_seconds)}" if left_seconds > 0 else "may expire at any moment"
