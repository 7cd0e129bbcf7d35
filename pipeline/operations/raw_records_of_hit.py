"""Finds the records of one hit in hits-raw for all projects, in one pass over the topic."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from confluent_kafka import Message

from pipeline.codec.raw_record import RAW_HIT_SCHEMA, REKEYED_FROM, Headers, is_public, place_text
from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames
from pipeline.operations.connection_trace import UnreadCounter
from pipeline.operations.hit_match import HitMatch
from pipeline.operations.read_topic import framing_of, header_texts, read_topic
from pipeline.stages.classify import Dead, RawHit, Rekey, classify_raw

_DERIVED_ID_LENGTH = 32
"""Hex digits of an id that is derived from topic, partition and offset; see raw_record.py."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record of the hit. `ahead` counts the unread records before it in its partition; None if a router has read it."""

    record: Message
    kind: RawHit | Rekey | Dead
    ahead: int | None

    @property
    def is_public(self) -> bool:
        """Whether the hit came in by a public door."""
        return is_public(self.record.headers())  # type: ignore[arg-type] # a list; the type stub is wrong

    @property
    def place(self) -> str:
        """Topic, partition and offset, in the format of the header `rekeyed-from`."""
        record = self.record
        return place_text(record.topic() or "", record.partition() or 0, record.offset() or 0)


@dataclass(slots=True)
class RawRecords:
    """The records of a hit: by project in order of append time, and those without a project of the file (`unowned`).

    `moved` holds the places of records that a router has written again with another key or to another partition.
    """

    of_projects: dict[str, list[RawRecord]] = field(default_factory=dict)
    unowned: list[Message] = field(default_factory=list)
    moved: set[str] = field(default_factory=set)


def raw_key(project: str, hit_id: str) -> bytes:
    """Return the key of a hit's record."""
    return f"{project}/{hit_id}".encode()


def find_raw_records(config: Config, hit_id: str, match: HitMatch, unread: UnreadCounter) -> RawRecords:
    """Read hits-raw to its current end, and return the records of the hit.

    The topic may have had fewer partitions when a record was written. So a record with the right key counts as a RawHit in
    any partition. Only the header of the copy shows that a router has rekeyed it.
    """
    topic, framing = TopicNames(config.kafka.topic_prefix).hits_raw, framing_of(config, RAW_HIT_SCHEMA)
    projects = {raw_key(project, hit_id): project for project in config.projects}
    found, may_hold = RawRecords(), _prefilter(hit_id)

    def classified(record: Message, partition: int) -> RawHit | Rekey | Dead:
        headers: Headers = list(record.headers() or ())  # type: ignore[arg-type] # a list; the type stub is wrong
        place = (topic, partition, record.offset() or 0)
        return classify_raw(record.value(), record.key(), headers, *place, 1, config.projects, framing)

    for record in read_topic(config.kafka, topic):
        ahead = unread.ahead_of(record)
        if not may_hold(record):
            continue
        # The real partition derives the same id for a hit without an id as the router did. Partition 0 of 1 never rekeys.
        kind = classified(record, record.partition() or 0)
        if isinstance(kind, Dead) and _is_unowned(kind, record, config.projects):
            if match.matches(record.key(), record.value()):
                found.unowned.append(record)
            continue
        key = kind.key if isinstance(kind, Rekey) else record.key()
        project = projects.get(key or b"")
        if project is None:
            continue
        if not isinstance(kind, Dead):
            kind = classified(record, 0) if record.key() == key else kind
            found.moved.add(header_texts(record).get(REKEYED_FROM, ""))
        found.of_projects.setdefault(project, []).append(RawRecord(record, kind, ahead))
    for records in found.of_projects.values():
        records.sort(key=lambda one: one.record.timestamp()[1])
    return found


def _is_unowned(dead: Dead, record: Message, projects: Collection[str]) -> bool:
    return dead.reason == "unknown_project" and header_texts(record).get("project") not in projects


def _prefilter(hit_id: str) -> Callable[[Message], bool]:
    """Return a predicate that rejects most records of other hits without decoding them."""
    needle, may_be_derived = hit_id.encode(), len(hit_id) == _DERIVED_ID_LENGTH

    def may_hold(record: Message) -> bool:
        value = record.value() or b""
        # JSON escapes can represent any character of the id with a backslash.
        return may_be_derived or needle in (record.key() or b"") or needle in value or b"\\" in value

    return may_hold
