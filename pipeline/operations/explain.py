"""Everything that happened to one hit, from the topics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from confluent_kafka import Message

from pipeline.codec.content import content_of
from pipeline.codec.raw_record import (
    RAW_HIT_SCHEMA,
    REKEYED_FROM,
    Dead,
    Headers,
    RawHit,
    Rekey,
    classify_raw,
    partition_of,
)
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.codec.routed_hit import time_text
from pipeline.config.models import Config, ConnectionConfig
from pipeline.delivery.deliverers import ReadHit, RoutedHits, event_of
from pipeline.destination import Http, Rejected, Skipped
from pipeline.kafka.partitions import partition_count
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
from pipeline.operations.hits_without_project import hits_without_project
from pipeline.operations.read_topic import framing_of, header_texts, read_topic
from pipeline.operations.unknown_names import unknown_name
from pipeline.registry import declared_destinations, read_settings_without_secrets
from pipeline.router.routing import Routing


@dataclass(frozen=True, slots=True)
class Received:
    """One record of hits-raw with this hit; `note` says what became of the record."""

    position: str
    at: str
    endpoint: str
    note: str


@dataclass(slots=True)
class Story:
    """What is known of one hit; `notes` are names in `integrations` that no connection answers to, as the file says now."""

    project: str
    hit_id: str
    received: list[Received] = field(default_factory=list)
    ways: list[ConnectionTrace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dead: list[Letter] = field(default_factory=list)
    unowned: str = ""
    """Why no project of the file owns the hit; `project` is then what the record names."""


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
    """Return a story per project that has the hit, and one per name that is no project; none when no topic has it.

    Reads the topics whole. With `project` only that one counts.
    """
    match = HitMatch.of(config, hit_id)
    letters = [
        letter for letter in read_letters(config, Filter()) if match.matches(letter.key, letter.value, letter.project)
    ]
    stories = []
    for name in [project] if project is not None else list(config.projects):
        story = _story(config, name, hit_id, letters)
        if story.received or story.dead:
            stories.append(story)
    if project is None:
        names = TopicNames(config.kafka.topic_prefix)
        for unowned in hits_without_project(config, match, letters):
            story = Story(unowned.named, hit_id, dead=unowned.dead, unowned=unowned.why(config.projects))
            story.received = [_received(names.hits_raw, record, note) for record, note in unowned.records]
            stories.append(story)
    return stories


def _story(config: Config, project: str, hit_id: str, letters: list[Letter]) -> Story:
    names = TopicNames(config.kafka.topic_prefix)
    story = Story(project, hit_id)
    reading = ask_kafka(config)
    partitions = partition_count(config.kafka, names.hits_raw)
    records, moved = _records_of(config, project, hit_id, Unread(reading, route_group(names)))
    first: _First | None = None
    for record, found, ahead in records:
        if isinstance(found, Dead):
            note = f"a dead letter: {found.message}"
        elif isinstance(found, Rekey) or _place(record) in moved:
            note = f"written back under its own key, to partition {partition_of(_key(project, hit_id), partitions)}"
        elif found.replay_to is not None:
            note = f"a replay to {found.replay_to}"
        elif first is None:
            first = _First(found, record.timestamp()[1], ahead)
            note = "the first of its id: " + ("routed" if ahead is None else _not_routed(reading, names, ahead))
        else:
            same = content_of(found.hit) == content_of(first.raw.hit)
            note = f"a duplicate{'' if same else ' with other content (hits_conflicting)'}: counted, not routed"
        story.received.append(_received(names.hits_raw, record, note))
    story.dead = [letter for letter in letters if letter.project == project]
    if first is not None:
        routing = Routing(config)
        story.ways = _traces(config, routing, reading, story, first)
        unknown = routing.plans[project].unknown_names(first.raw.hit.integrations)
        story.notes = [unknown_name(name, config.connections) for name in unknown]
    return story


def _key(project: str, hit_id: str) -> bytes:
    return f"{project}/{hit_id}".encode()


def _place(record: Message) -> str:
    return f"{record.topic()}/{record.partition()}/{record.offset()}"


def _records_of(
    config: Config, project: str, hit_id: str, unread: Unread
) -> tuple[list[tuple[Message, RawHit | Rekey | Dead, int | None]], set[str]]:
    """Return what hits-raw holds of one hit by append time, each with the unread records before it, and what was written back.

    hits-raw may have had fewer partitions when a record was written. So a record under its own key is a RawHit wherever it
    lies, and only the copy tells that a router has written it back.
    """
    names, framing = TopicNames(config.kafka.topic_prefix), framing_of(config, RAW_HIT_SCHEMA)
    key = _key(project, hit_id)
    found: list[tuple[Message, RawHit | Rekey | Dead, int | None]] = []
    moved: set[str] = set()

    def classified(record: Message, partition: int) -> RawHit | Rekey | Dead:
        headers: Headers = list(record.headers() or ())  # type: ignore[arg-type] # a list, whatever the stub says
        place = (names.hits_raw, partition, record.offset() or 0)
        return classify_raw(record.value(), record.key(), headers, *place, 1, config.projects, framing)

    for record in read_topic(config.kafka, names.hits_raw):
        ahead = unread.ahead_of(record)
        # Its own partition gives a hit without an id the id that the router has given it; with partition 0 nothing is moved.
        kind = classified(record, record.partition() or 0)
        if isinstance(kind, Dead):
            if record.key() == key:
                found.append((record, kind, ahead))
            continue
        if (kind.key if isinstance(kind, Rekey) else record.key()) != key:
            continue
        found.append((record, classified(record, 0) if record.key() == key else kind, ahead))
        moved.add(header_texts(record).get(REKEYED_FROM, ""))
    return sorted(found, key=lambda one: one[0].timestamp()[1]), moved


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
    for connection in config.connections:
        topic = names.deliveries(connection)
        has_sink = kinds[config.connections[connection].destination].sink is not None
        unread = Unread(reading, deliver_group(names, connection))
        records: list[OnTopic] = []
        value: bytes | None = None
        for record in read_topic(config.kafka, topic) if reading.partitions(topic) else ():
            ahead = unread.ahead_of(record)
            if _holds(hits, record, story):
                records.append(OnTopic.of(record, ahead))
                value = record.value()
        dead = [letter for letter in story.dead if letter.connection == connection]
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
        details = [
            f"{_position(topic, record.partition, record.offset)}, version {record.version}" for record in records
        ]
        waiting = [record for record in records if record.ahead is not None]
        if has_sink and waiting:
            yield _Pending(connection, tuple(details), waiting)
            continue
        state = "delivered" if has_sink else "on its topic"
        if dead and has_sink:
            # Each record that failed has a letter; one that was sent again and arrived has none.
            state = "dead" if len(dead) >= len(records) else "delivered"
            details += [f"{letter.reason}: {letter.message} (dead letter {letter.position})" for letter in dead]
        why = skipped(config.connections[connection], hits.read(value)) if state == "delivered" else None
        yield ConnectionTrace(connection, state if why is None else f"skipped: {why}", tuple(details))


def skipped(connection: ConnectionConfig, read: ReadHit | Rejected) -> str | None:
    """Why the destination, as it is now, has no use for a hit; no topic says it of a single one."""
    destination, settings = read_settings_without_secrets(connection)
    if not isinstance(destination.sink, Http) or isinstance(read, Rejected):
        return None
    event = event_of(destination, destination.sink, read, settings)
    return event.reason if isinstance(event, Skipped) else None


def _holds(hits: RoutedHits, record: Message, story: Story) -> bool:
    value = record.value() or b""
    if value[:1] == b"{" and msgspec.json.encode(story.hit_id) not in value[: len(story.hit_id) * 6 + 64]:
        return False
    read = hits.read(value)
    return isinstance(read, ReadHit) and (read.hit.projectId, read.hit.hitId) == (story.project, story.hit_id)


def _position(topic: str, partition: int, offset: int) -> str:
    return f"{topic}-{partition} at {offset}"
