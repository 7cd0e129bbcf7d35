"""Determines the state of one hit at each connection: delivered, dead, pending and why, or expired before delivery."""

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
    """The state of a hit at one connection: delivered, pending, on its topic, dead, expired, or why it was filtered or skipped."""

    connection: str
    state: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterState:
    """A snapshot of committed offsets by group, watermarks, and groups without members.

    `removed_connections` have a topic but are not in the file.
    """

    committed: Mapping[str, Mapping[Place, int]]
    watermarks: Mapping[Place, Watermarks]
    groups_without_members: Collection[str]
    removed_connections: Sequence[str] = ()

    def next_offset(self, group: str, place: Place) -> int:
        """Return the offset that `group` reads next."""
        return self.committed.get(group, {}).get(place, 0)

    def partitions(self, topic: str) -> list[int]:
        """Return the partitions of `topic`, sorted; an empty list if it does not exist."""
        return sorted(place[1] for place in self.watermarks if place[0] == topic)


def read_cluster_state(config: Config) -> ClusterState:
    """Return the offsets and members of all groups of `config`. Raises BrokerUnavailable."""
    names = TopicNames(config.kafka.topic_prefix)
    cluster = ClusterReader(config.kafka)
    found = sorted(filter(None, map(names.connection_of, cluster.topics())))
    left = [name for name in found if name not in config.connections]
    connections = [*config.connections, *left]
    groups = [route_group(names), set_aside_group(names), *(deliver_group(names, name) for name in connections)]
    topics = [names.hits_raw, names.set_aside, *map(names.deliveries, connections)]
    return ClusterState(
        cluster.committed(dict(zip(groups, topics, strict=True))),
        cluster.watermarks(topics),
        cluster.without_members(groups),
        left,
    )


def route_group(names: TopicNames) -> str:
    """Return the consumer group of the routers."""
    return f"{names.prefix}route"


def deliver_group(names: TopicNames, connection: str) -> str:
    """Return the consumer group of the workers that deliver to `connection`."""
    return f"{names.prefix}deliver-{connection}"


@dataclass(slots=True)
class UnreadCounter:
    """Counts a group's unread records of a topic, to tell how many are ahead of a given one in its partition."""

    cluster: ClusterState
    group: str
    _counts: Counter[int] = field(default_factory=Counter)

    def ahead_of(self, record: Message) -> int | None:
        """Return how many unread records are ahead of `record` in its partition; None if the group has read it.

        Call it once for each record, in offset order.
        """
        partition, offset = record.partition() or 0, record.offset() or 0
        if offset < self.cluster.next_offset(self.group, (record.topic() or "", partition)):
            return None
        self._counts[partition] += 1
        return self._counts[partition] - 1


def queue_position_text(ahead: int) -> str:
    """Return the position of an unread record in its partition, as text."""
    if not ahead:
        return "the next in its partition"
    return f"behind {ahead:,} {'other' if ahead == 1 else 'others'} in its partition"


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A record of the hit on a deliveries topic. `ahead` counts the unread records before it; None if it was read.

    `version` is "" if the record has no header `config-version`, such as a replayed dead letter.
    """

    partition: int
    offset: int
    written_ms: int
    version: str
    ahead: int | None

    @classmethod
    def of(cls, record: Message, ahead: int | None) -> DeliveryRecord:
        """Return the facts of `record` that a trace needs."""
        return cls(
            record.partition() or 0,
            record.offset() or 0,
            record.timestamp()[1],
            header_texts(record).get("config-version", ""),
            ahead,
        )


@dataclass(frozen=True, slots=True)
class DeletedRecord:
    """A hit that the current file routes to `connection`, whose record may have been deleted by retention.

    `partition` is that of its key. `fate` is None for a connection without a sink, whose readers are unknown.
    """

    connection: str
    partition: int
    fate: RecordFate | None

    def trace(self, config: Config) -> ConnectionTrace:
        """Return the state at this connection. Call it after `fate` has received the ledger entries."""
        topic = TopicNames(config.kafka.topic_prefix).deliveries(self.connection)
        where = f"if it was routed here, its record was on {topic}-{self.partition}, and retention has deleted it"
        if self.fate is None:
            return ConnectionTrace(self.connection, "no longer on its topic", (where,))
        match self.fate.fate:
            case "expired":
                held = "; a worker that holds it in memory can still deliver it" if self.fate.may_be_held else ""
                return ConnectionTrace(
                    self.connection, "expired before delivery", (where, f"no delivery of it is recorded{held}")
                )
            case "read":
                return ConnectionTrace(
                    self.connection, "delivered or skipped", (where, "it had an outcome before that")
                )
            case "unknown":
                why = "the ledger does not show whether it had an outcome before that"
                return ConnectionTrace(self.connection, "delivered, skipped or expired", (where, why))
            case "never written":
                return ConnectionTrace(self.connection, NOT_ROUTED)


NOT_ROUTED = "not routed: the version of the file at that time did not select this connection"


def deleted_record(
    config: Config, cluster: ClusterState, connection: str, identity: str, routed_from_ms: int, has_sink: bool
) -> DeletedRecord | None:
    """Return the possibly deleted record of a hit; None if retention cannot have deleted it, so it was never written."""
    names = TopicNames(config.kafka.topic_prefix)
    topic = names.deliveries(connection)
    count = len(cluster.partitions(topic))
    if not count:
        return None
    place = (topic, partition_of(identity.encode(), count))
    low = cluster.watermarks[place].low
    if not low:
        return None
    next_offset = cluster.next_offset(deliver_group(names, connection), place)
    return DeletedRecord(connection, place[1], RecordFate(routed_from_ms, low, next_offset) if has_sink else None)


def read_pauses_and_fates(config: Config, deleted: Sequence[DeletedRecord]) -> dict[str, Pause]:
    """Read the ledger once. Returns the paused connections, and passes entries to the fates of the `deleted` records."""
    names = TopicNames(config.kafka.topic_prefix)
    fates = {(names.deliveries(one.connection), one.partition): one.fate for one in deleted}
    pauses: dict[str, Pause] = {}
    for record in read_topic(config.kafka, names.ledger):
        entry = decode_ledger_entry(record.value() or b"")
        note_pause(pauses, entry)
        fate = fates.get((entry.topic, entry.partition)) if entry.role == "deliver" else None
        if fate is not None:
            fate.add(entry)
    return pauses


def pending_reasons(
    config: Config,
    cluster: ClusterState,
    pauses: Mapping[str, Pause],
    connection: str,
    waiting: Sequence[DeliveryRecord],
) -> Iterator[str]:
    """Yield why records of `connection` are still unread, their positions, and when they expire."""
    names = TopicNames(config.kafka.topic_prefix)
    if deliver_group(names, connection) in cluster.groups_without_members:
        yield "no deliver worker is running: start `hitrouter deliver`"
    pause = pauses.get(connection)
    if pause is not None:
        kind = "misconfigured" if pause.is_misconfigured else "failing"
        yield f"{kind} since {time_text(pause.since_ms)}: {pause.message}"
    topic = names.deliveries(connection)
    retention_ms = topic_retention_ms(config.kafka, [topic]).get(topic)
    for record in waiting:
        yield queue_position_text(record.ahead or 0)
        if retention_ms is not None:
            left_seconds = (record.written_ms + retention_ms) / 1000 - time.time()
            yield f"expires in {duration_text(left_seconds)}" if left_seconds > 0 else "can expire at any moment"
