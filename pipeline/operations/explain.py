"""Everything that happened to one hit, from the topics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
from confluent_kafka import Message

from pipeline.codec.content import content_of
from pipeline.codec.raw_record import Dead, RawHit, Rekey, partition_of
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.codec.routed_hit import time_text
from pipeline.config.models import Config, ConnectionConfig
from pipeline.delivery.deliverers import ReadHit, RoutedHits, event_of
from pipeline.destination import Http, Rejected, Skipped
from pipeline.kafka.topics import TopicNames
from pipeline.operations.connection_trace import (
    NOT_ROUTED,
    ConnectionTrace,
    Gone,
    OnTopic,
    Reading,
    Unread,
    ask_kafka,
    deliver_group,
    gone,
    place_in_line,
    read_notes,
    route_group,
    why_pending,
)
from pipeline.operations.dead_letters import Filter, Letter, read_letters
from pipeline.operations.hit_match import HitMatch
from pipeline.operations.hits_by_door import hits_by_door
from pipeline.operations.hits_without_project import hits_without_project
from pipeline.operations.raw_records_of_hit import RawRecord, find_raw_records, raw_key
from pipeline.operations.read_topic import framing_of, header_texts, read_topic
from pipeline.operations.set_aside import set_aside_group, waiting_hits, why_set_aside
from pipeline.operations.unknown_names import unknown_name
from pipeline.registry import declared_destinations, read_settings_without_secrets
from pipeline.router.routing import Routing
from pipeline.stages.deduplicate import id_of

_READERS = 8
"""Topics that are read at a time."""


@dataclass(frozen=True, slots=True)
class Received:
    """One record of hits-raw with this hit; `note` says what became of the record."""

    position: str
    at: str
    endpoint: str
    note: str


@dataclass(slots=True)
class Story:
    """What is known of one hit; `notes` are names in `integrations` that no connection answers to, as the file says now.

    `door` is `secret` or `public`: a project may have two hits with one hitId, which differ in it. "": not known.
    """

    project: str
    hit_id: str
    received: list[Received] = field(default_factory=list)
    ways: list[ConnectionTrace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dead: list[Letter] = field(default_factory=list)
    unowned: str = ""
    """Why no project of the file owns the hit; `project` is then what the record names."""
    door: str = ""
    is_only: bool = True
    """Whether the project has no hit with this hitId by the other kind of door."""


@dataclass(frozen=True, slots=True)
class _First:
    """The record that counts among those with one id; `ahead` is None once it was routed, else how many are before it."""

    raw: RawHit
    appended_ms: int
    ahead: int | None


@dataclass(frozen=True, slots=True)
class _Pending:
    """A connection whose `waiting` records no worker has read."""

    connection: str
    details: tuple[str, ...]
    waiting: list[OnTopic]


def explain(config: Config, hit_id: str, project: str | None = None) -> list[Story]:
    """Return a story per project and kind of door that has the hit, and one per name that is no project.

    Reads the topics whole. With `project` only that one counts. Returns none when no topic has the hit.
    """
    names = TopicNames(config.kafka.topic_prefix)
    match = HitMatch.of(config, hit_id)
    letters = [
        letter for letter in read_letters(config, Filter()) if match.matches(letter.key, letter.value, letter.project)
    ]
    reading = ask_kafka(config)
    raw = find_raw_records(config, hit_id, match, Unread(reading, route_group(names)))
    stories = []
    for name in [project] if project is not None else list(config.projects):
        hits = hits_by_door(raw.of_projects.get(name, ()), [letter for letter in letters if letter.project == name])
        for door, records, dead in hits:
            story = Story(name, hit_id, dead=dead, door=door, is_only=len(hits) == 1)
            _tell(config, story, reading, records, raw.moved)
            stories.append(story)
    if project is None:
        for unowned in hits_without_project(config, raw.unowned, letters):
            story = Story(unowned.named, hit_id, dead=unowned.dead, unowned=unowned.why(config.projects))
            story.received = [_received(names.hits_raw, record, note) for record, note in unowned.records]
            stories.append(story)
    return stories


def _tell(config: Config, story: Story, reading: Reading, records: Sequence[RawRecord], moved: Collection[str]) -> None:
    """Complete `story` from its records of hits-raw; `moved` are the places of those that were written back."""
    names = TopicNames(config.kafka.topic_prefix)
    project, hit_id = story.project, story.hit_id
    partitions = len(reading.partitions(names.hits_raw))
    first: _First | None = None
    firsts: dict[bytes, RawHit] = {}
    for one in records:
        found, ahead = one.kind, one.ahead
        if isinstance(found, Dead):
            note = f"a dead letter: {found.message}"
        elif isinstance(found, Rekey) or one.place in moved:
            note = f"written back under its own key, to partition {partition_of(raw_key(project, hit_id), partitions)}"
        elif found.replay_to is not None:
            note = f"a replay to {found.replay_to}"
        elif (former := firsts.setdefault(id_of(found), found)) is found:
            first = first or _First(found, one.record.timestamp()[1], ahead)
            note = "the first of its id: " + ("routed" if ahead is None else _not_routed(reading, names, ahead))
        else:
            same = content_of(found.hit) == content_of(former.hit)
            note = f"a duplicate{'' if same else ' with other content (hits_conflicting)'}: counted, not routed"
        story.received.append(_received(names.hits_raw, one.record, note))
    if first is not None:
        routing = Routing(config)
        story.ways = _traces(config, routing, reading, story, first)
        unknown = routing.plans[project].unknown_names(first.raw.hit.integrations)
        story.notes = [unknown_name(name, config.connections) for name in unknown]


def _received(topic: str, record: Message, note: str) -> Received:
    position = _position(topic, record.partition() or 0, record.offset() or 0)
    return Received(position, time_text(record.timestamp()[1]), header_texts(record).get("endpoint", "Kafka"), note)


def _not_routed(reading: Reading, names: TopicNames, ahead: int) -> str:
    no_router = "; no router runs: start `hitrouter route`" if route_group(names) in reading.idle_groups else ""
    return f"not routed yet, {place_in_line(ahead)}{no_router}"


def _traces(config: Config, routing: Routing, reading: Reading, story: Story, first: _First) -> list[ConnectionTrace]:
    found: list[ConnectionTrace | Gone | _Pending] = list(_find(config, routing, reading, story, first))
    missing = [one for one in found if isinstance(one, Gone)]
    # The ledger is read only where it has something to say.
    pauses = read_notes(config, missing) if any(not isinstance(one, ConnectionTrace) for one in found) else {}
    traces = []
    for one in found:
        if isinstance(one, Gone):
            one = one.trace(config)
        elif isinstance(one, _Pending):
            reasons = why_pending(config, reading, pauses, one.connection, one.waiting)
            one = ConnectionTrace(one.connection, "pending", (*one.details, *reasons))
        traces.append(one)
    return traces


def _find(
    config: Config, routing: Routing, reading: Reading, story: Story, first: _First
) -> Iterator[ConnectionTrace | Gone | _Pending]:
    names, kinds = TopicNames(config.kafka.topic_prefix), declared_destinations()
    raw, appended_ms = first.raw, first.appended_ms
    now = {decision.connection: decision for decision in routing.route(raw, appended_ms).decisions}
    hits = RoutedHits(framing_of(config, ROUTED_HIT_SCHEMA))
    held = _held(config, reading, hits, story)
    waiting_aside = waiting_hits(config, reading.committed[set_aside_group(names)], reading.marks)
    aside = {one.hit.connection: why_set_aside(one) for one in waiting_aside if _holds(hits, one.record, story)}
    for connection in config.connections:
        topic = names.deliveries(connection)
        has_sink = kinds[config.connections[connection].destination].sink is not None
        records, value = held[connection]
        dead = [letter for letter in story.dead if letter.connection == connection]
        if connection in aside and not any(record.ahead is not None for record in records):
            yield ConnectionTrace(connection, "pending", (*_places(topic, records), aside[connection]))
            continue
        if not records:
            decision = now[connection]
            if dead:
                yield ConnectionTrace(
                    connection, "dead", tuple(f"{letter.reason}: {letter.message}" for letter in dead)
                )
            elif decision.reason is not None:
                yield ConnectionTrace(connection, f"filtered: {decision.reason.value}", ("as the file says now",))
            elif first.ahead is not None:
                yield ConnectionTrace(connection, "not routed yet")
            else:
                taken = gone(config, reading, connection, raw.hit.identity, appended_ms, has_sink)
                yield taken or ConnectionTrace(connection, NOT_ROUTED)
            continue
        details = _places(topic, records)
        waiting = [record for record in records if record.ahead is not None]
        if has_sink and waiting:
            yield _Pending(connection, tuple(details), waiting)
            continue
        state = "delivered" if has_sink else "on its topic"
        if dead and has_sink:
            # Each record that failed has a letter; one that was sent again and arrived has none.
            state = "dead" if len(dead) >= len(records) else "delivered"
            details += [_told(letter) for letter in dead]
        why = skipped(config.connections[connection], hits.read(value)) if state == "delivered" else None
        yield ConnectionTrace(connection, state if why is None else f"skipped: {why}", tuple(details))
    for connection in reading.left_connections:
        records, _ = held[connection]
        if records:
            waits = any(record.ahead is not None for record in records)
            state = "not in the file: " + (
                "pending, and nobody delivers it" if waits else "read by its deliverer before"
            )
            yield ConnectionTrace(connection, state, tuple(_places(names.deliveries(connection), records)))


def _held(
    config: Config, reading: Reading, hits: RoutedHits, story: Story
) -> dict[str, tuple[list[OnTopic], bytes | None]]:
    """By connection its records of the hit and the value of the last one. Topics are read side by side, since most are short."""
    names = TopicNames(config.kafka.topic_prefix)

    def read(connection: str) -> tuple[list[OnTopic], bytes | None]:
        topic = names.deliveries(connection)
        unread = Unread(reading, deliver_group(names, connection))
        records: list[OnTopic] = []
        value: bytes | None = None
        for record in read_topic(config.kafka, topic) if reading.partitions(topic) else ():
            ahead = unread.ahead_of(record)
            if _holds(hits, record, story):
                records.append(OnTopic.of(record, ahead))
                value = record.value()
        return records, value

    connections = [*config.connections, *reading.left_connections]
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(connections, pool.map(read, connections), strict=True))


def _places(topic: str, records: Sequence[OnTopic]) -> list[str]:
    return [
        _position(topic, record.partition, record.offset)
        + (f", config-version {record.version}" if record.version else "")
        for record in records
    ]


def _told(letter: Letter) -> str:
    resent = ", resent" if letter.replayed else ""
    return f"{letter.reason}: {letter.message} (dead letter {letter.position}{resent})"


def skipped(connection: ConnectionConfig, read: ReadHit | Rejected) -> str | None:
    """Why the destination, as it is now, has no use for a hit; no topic says it of a single one."""
    destination, settings = read_settings_without_secrets(connection)
    if not isinstance(destination.sink, Http) or isinstance(read, Rejected):
        return None
    event = event_of(destination, destination.sink, read, settings)
    return event.reason if isinstance(event, Skipped) else None


def _holds(hits: RoutedHits, record: Message, story: Story) -> bool:
    value = record.value() or b""
    if value[:1] == b"{":
        if msgspec.json.encode(story.hit_id) not in value[: len(story.hit_id) * 6 + 64]:
            return False
    elif story.hit_id.encode() not in value:
        return False
    read = hits.read(value)
    if not isinstance(read, ReadHit) or (read.hit.projectId, read.hit.hitId) != (story.project, story.hit_id):
        return False
    # Older releases did not write the door.
    return story.is_only or read.hit.door == story.door


def _position(topic: str, partition: int, offset: int) -> str:
    return f"{topic}-{partition} at {offset}"
