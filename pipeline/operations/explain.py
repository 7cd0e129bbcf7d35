"""Traces one hit through all topics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
from confluent_kafka import Message

from pipeline.codec.content import content_of
from pipeline.codec.raw_record import partition_of
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.codec.routed_hit import time_text
from pipeline.config.models import Config, ConnectionConfig
from pipeline.delivery.deliverers import ReadHit, RoutedHits, event_of
from pipeline.destination import Http, Rejected, Skipped
from pipeline.kafka.topics import TopicNames
from pipeline.operations.connection_trace import (
    NOT_ROUTED,
    ClusterState,
    ConnectionTrace,
    DeletedRecord,
    DeliveryRecord,
    UnreadCounter,
    deleted_record,
    deliver_group,
    pending_reasons,
    queue_position_text,
    read_cluster_state,
    read_pauses_and_fates,
    route_group,
)
from pipeline.operations.dead_letters import StoredDeadLetter, read_dead_letters
from pipeline.operations.hit_match import HitMatch
from pipeline.operations.hits_by_door import hits_by_door
from pipeline.operations.hits_without_project import hits_without_project
from pipeline.operations.raw_records_of_hit import RawRecord, find_raw_records, raw_key
from pipeline.operations.read_topic import framing_of, header_texts, read_topic
from pipeline.operations.set_aside import set_aside_group, set_aside_text, waiting_hits
from pipeline.operations.unknown_names import unknown_name
from pipeline.registry import declared_destinations, read_settings_without_secrets
from pipeline.router.routing import Routing
from pipeline.stages.classify import Dead, RawHit, Rekey
from pipeline.stages.deduplicate import id_of

_READERS = 8
"""Number of topics that are read in parallel."""


@dataclass(frozen=True, slots=True)
class Received:
    """One record of this hit in hits-raw; `note` describes how the record was handled."""

    position: str
    at: str
    endpoint: str
    note: str


@dataclass(slots=True)
class HitTrace:
    """Everything known about one hit. `notes` lists the names in `integrations` that the current file does not know.

    `door` is `secret`, `public`, or "" if unknown. A project can have two hits with the same hitId, one of each door.
    """

    project: str
    hit_id: str
    received: list[Received] = field(default_factory=list)
    connection_traces: list[ConnectionTrace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dead: list[StoredDeadLetter] = field(default_factory=list)
    unowned: str = ""
    """Why no project of the file owns the hit; `project` is then the value of its header."""
    door: str = ""
    is_only: bool = True
    """Whether the project has no hit with this hitId of the other door."""


@dataclass(frozen=True, slots=True)
class _FirstRecord:
    """The first of the records with one id; later ones are duplicates.

    `ahead` is the number of unread records before it, None once a router has read it.
    """

    raw: RawHit
    appended_ms: int
    ahead: int | None


@dataclass(frozen=True, slots=True)
class _PendingTrace:
    """A connection whose records in `waiting` are unread."""

    connection: str
    details: tuple[str, ...]
    waiting: list[DeliveryRecord]


def explain(config: Config, hit_id: str, project: str | None = None) -> list[HitTrace]:
    """Return one trace for each project and door that has the hit, and one for each unknown project name.

    Reads the whole topics. With `project`, only that project counts. The list is empty if no topic has the hit.
    """
    names = TopicNames(config.kafka.topic_prefix)
    match = HitMatch.of(config, hit_id)
    letters = [one for one in read_dead_letters(config) if match.matches(one.key, one.value, one.project)]
    cluster = read_cluster_state(config)
    raw = find_raw_records(config, hit_id, match, UnreadCounter(cluster, route_group(names)))
    traces = []
    for name in [project] if project is not None else list(config.projects):
        hits = hits_by_door(raw.of_projects.get(name, ()), [letter for letter in letters if letter.project == name])
        for door, records, dead in hits:
            trace = HitTrace(name, hit_id, dead=dead, door=door, is_only=len(hits) == 1)
            _complete_trace(config, trace, cluster, records, raw.moved)
            traces.append(trace)
    if project is None:
        for unowned in hits_without_project(config, raw.unowned, letters):
            trace = HitTrace(unowned.named, hit_id, dead=unowned.dead, unowned=unowned.why(config.projects))
            trace.received = [_received(names.hits_raw, record, note) for record, note in unowned.records]
            traces.append(trace)
    return traces


def _complete_trace(
    config: Config, trace: HitTrace, cluster: ClusterState, records: Sequence[RawRecord], moved: Collection[str]
) -> None:
    """Complete `trace` from its records of hits-raw; `moved` holds the places of rekeyed records."""
    names = TopicNames(config.kafka.topic_prefix)
    project, hit_id = trace.project, trace.hit_id
    partitions = len(cluster.partitions(names.hits_raw))
    first: _FirstRecord | None = None
    firsts: dict[bytes, RawHit] = {}
    for one in records:
        found, ahead = one.kind, one.ahead
        if isinstance(found, Dead):
            note = f"a dead letter: {found.message}"
        elif isinstance(found, Rekey) or one.place in moved:
            partition = partition_of(raw_key(project, hit_id), partitions)
            note = f"rekeyed: written again with the key of its hit, to partition {partition}"
        elif found.replay_to is not None:
            note = f"a replay to {found.replay_to}"
        elif (first_hit := firsts.setdefault(id_of(found), found)) is found:
            first = first or _FirstRecord(found, one.record.timestamp()[1], ahead)
            note = "the first with this id: " + ("routed" if ahead is None else _not_routed(cluster, names, ahead))
        else:
            same = content_of(found.hit) == content_of(first_hit.hit)
            note = f"a duplicate{'' if same else ' with different content (hits_conflicting)'}: counted, not routed"
        trace.received.append(_received(names.hits_raw, one.record, note))
    if first is not None:
        routing = Routing(config)
        trace.connection_traces = _traces(config, routing, cluster, trace, first)
        unknown = routing.plans[project].unknown_names(first.raw.hit.integrations)
        trace.notes = [unknown_name(name, config.connections) for name in unknown]


def _received(topic: str, record: Message, note: str) -> Received:
    position = _position(topic, record.partition() or 0, record.offset() or 0)
    return Received(position, time_text(record.timestamp()[1]), header_texts(record).get("endpoint", "Kafka"), note)


def _not_routed(cluster: ClusterState, names: TopicNames, ahead: int) -> str:
    has_router = route_group(names) not in cluster.groups_without_members
    no_router = "" if has_router else "; no router is running: start `hitrouter route`"
    return f"not routed yet, {queue_position_text(ahead)}{no_router}"


def _traces(
    config: Config, routing: Routing, cluster: ClusterState, trace: HitTrace, first: _FirstRecord
) -> list[ConnectionTrace]:
    found = list(_find_traces(config, routing, cluster, trace, first))
    deleted = [one for one in found if isinstance(one, DeletedRecord)]
    needs_ledger = any(not isinstance(one, ConnectionTrace) for one in found)
    pauses = read_pauses_and_fates(config, deleted) if needs_ledger else {}
    traces = []
    for one in found:
        if isinstance(one, DeletedRecord):
            one = one.trace(config)
        elif isinstance(one, _PendingTrace):
            reasons = pending_reasons(config, cluster, pauses, one.connection, one.waiting)
            one = ConnectionTrace(one.connection, "pending", (*one.details, *reasons))
        traces.append(one)
    return traces


def _find_traces(
    config: Config, routing: Routing, cluster: ClusterState, trace: HitTrace, first: _FirstRecord
) -> Iterator[ConnectionTrace | DeletedRecord | _PendingTrace]:
    names, kinds = TopicNames(config.kafka.topic_prefix), declared_destinations()
    raw, appended_ms = first.raw, first.appended_ms
    now = {decision.connection: decision for decision in routing.route(raw, appended_ms).decisions}
    hits = RoutedHits(framing_of(config, ROUTED_HIT_SCHEMA))
    records_by_connection = _records_by_connection(config, cluster, hits, trace)
    waiting_aside = waiting_hits(config, cluster.committed[set_aside_group(names)], cluster.watermarks)
    aside = {one.hit.connection: set_aside_text(one) for one in waiting_aside if _is_of(hits, one.record, trace)}
    for connection in config.connections:
        topic = names.deliveries(connection)
        has_sink = kinds[config.connections[connection].destination].sink is not None
        records, value = records_by_connection[connection]
        dead = [letter for letter in trace.dead if letter.connection == connection]
        if connection in aside and not any(record.ahead is not None for record in records):
            yield ConnectionTrace(connection, "pending", (*_places(topic, records), aside[connection]))
            continue
        if not records:
            decision = now[connection]
            if dead:
                yield ConnectionTrace(connection, "dead", tuple(f"{one.reason}: {one.message}" for one in dead))
            elif decision.reason is not None:
                yield ConnectionTrace(connection, f"filtered: {decision.reason.value}", ("by the current file",))
            elif first.ahead is not None:
                yield ConnectionTrace(connection, "not routed yet")
            else:
                deleted = deleted_record(config, cluster, connection, raw.hit.identity, appended_ms, has_sink)
                yield deleted or ConnectionTrace(connection, NOT_ROUTED)
            continue
        details = _places(topic, records)
        waiting = [record for record in records if record.ahead is not None]
        if has_sink and waiting:
            yield _PendingTrace(connection, tuple(details), waiting)
            continue
        state = "delivered" if has_sink else "on its topic"
        if dead and has_sink:
            # Each failed record has a dead letter. A replayed record that was delivered has none.
            state = "dead" if len(dead) >= len(records) else "delivered"
            details += [_dead_letter_text(letter) for letter in dead]
        why = skip_reason(config.connections[connection], hits.read(value)) if state == "delivered" else None
        yield ConnectionTrace(connection, state if why is None else f"skipped: {why}", tuple(details))
    for connection in cluster.removed_connections:
        records, _ = records_by_connection[connection]
        if records:
            waits = any(record.ahead is not None for record in records)
            state = "pending, not delivered by any worker" if waits else "read by a worker earlier"
            yield ConnectionTrace(
                connection, f"not in the file: {state}", tuple(_places(names.deliveries(connection), records))
            )


def _records_by_connection(
    config: Config, cluster: ClusterState, hits: RoutedHits, trace: HitTrace
) -> dict[str, tuple[list[DeliveryRecord], bytes | None]]:
    """Return by connection its records of the hit, and the value of the last one. Reads topics in parallel, as most are short."""
    names = TopicNames(config.kafka.topic_prefix)

    def read(connection: str) -> tuple[list[DeliveryRecord], bytes | None]:
        topic = names.deliveries(connection)
        unread = UnreadCounter(cluster, deliver_group(names, connection))
        records: list[DeliveryRecord] = []
        value: bytes | None = None
        for record in read_topic(config.kafka, topic) if cluster.partitions(topic) else ():
            ahead = unread.ahead_of(record)
            if _is_of(hits, record, trace):
                records.append(DeliveryRecord.of(record, ahead))
                value = record.value()
        return records, value

    connections = [*config.connections, *cluster.removed_connections]
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(connections, pool.map(read, connections), strict=True))


def _places(topic: str, records: Sequence[DeliveryRecord]) -> list[str]:
    return [
        _position(topic, record.partition, record.offset)
        + (f", config-version {record.version}" if record.version else "")
        for record in records
    ]


def _dead_letter_text(letter: StoredDeadLetter) -> str:
    return f"{letter.reason}: {letter.message} (dead letter {letter.position}{', replayed' if letter.replayed else ''})"


def skip_reason(connection: ConnectionConfig, read: ReadHit | Rejected) -> str | None:
    """Return why the destination skips a hit, or None. Computed again, since no topic holds it for a single hit."""
    destination, settings = read_settings_without_secrets(connection)
    if not isinstance(destination.sink, Http) or isinstance(read, Rejected):
        return None
    event = event_of(destination, destination.sink, read, settings)
    return event.reason if isinstance(event, Skipped) else None


def _is_of(hits: RoutedHits, record: Message, trace: HitTrace) -> bool:
    value = record.value() or b""
    if value[:1] == b"{":
        if msgspec.json.encode(trace.hit_id) not in value[: len(trace.hit_id) * 6 + 64]:
            return False
    elif trace.hit_id.encode() not in value:
        return False
    read = hits.read(value)
    if not isinstance(read, ReadHit) or (read.hit.projectId, read.hit.hitId) != (trace.project, trace.hit_id):
        return False
    # Records of older releases have no door.
    return trace.is_only or read.hit.door == trace.door


def _position(topic: str, partition: int, offset: int) -> str:
    return f"{topic}-{partition} at {offset}"
