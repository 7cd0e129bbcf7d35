"""What hits-raw holds of one hit, for every project at once: the topic is read a single time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from confluent_kafka import Message

from pipeline.codec.raw_record import (
    RAW_HIT_SCHEMA,
    REKEYED_FROM,
    Dead,
    Headers,
    RawHit,
    Rekey,
    classify_raw,
    is_public,
    place_text,
)
from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames
from pipeline.operations.connection_trace import Unread
from pipeline.operations.hit_match import HitMatch
from pipeline.operations.read_topic import framing_of, header_texts, read_topic

_DERIVED_ID_LENGTH = 32
"""Hex digits of an id that is derived from the place of a record, see raw_record.py."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """`ahead` is None once a router has read the record, else how many unread ones are before it in its partition."""

    record: Message
    kind: RawHit | Rekey | Dead
    ahead: int | None

    @property
    def is_public(self) -> bool:
        """Whether it came in by a public door."""
        return is_public(self.record.headers())  # type: ignore[arg-type] # a list, whatever the stub says

    @property
    def place(self) -> str:
        """As the header `rekeyed-from` names it."""
        record = self.record
        return place_text(record.topic() or "", record.partition() or 0, record.offset() or 0)


@dataclass(slots=True)
class RawRecords:
    """`of_projects` holds, by project, the records of the hit by append time; `unowned` are those without a project of the file.

    `moved` are the places of records that a router has written back under another key or into another partition.
    """

    of_projects: dict[str, list[RawRecord]] = field(default_factory=dict)
    unowned: list[Message] = field(default_factory=list)
    moved: set[str] = field(default_factory=set)


def raw_key(project: str, hit_id: str) -> bytes:
    """The key of a hit's record."""
    return f"{project}/{hit_id}".encode()


def find_raw_records(config: Config, hit_id: str, match: HitMatch, unread: Unread) -> RawRecords:
    """Read hits-raw.

    It may have had fewer partitions when a record was written. So a record under its own key is a RawHit wherever it lies, and
    only the copy tells that a router has written it back.
    """
    topic, framing = TopicNames(config.kafka.topic_prefix).hits_raw, framing_of(config, RAW_HIT_SCHEMA)
    projects = {raw_key(project, hit_id): project for project in config.projects}
    found, may_hold = RawRecords(), _filter(hit_id)

    def classified(record: Message, partition: int) -> RawHit | Rekey | Dead:
        headers: Headers = list(record.headers() or ())  # type: ignore[arg-type] # a list, whatever the stub says
        place = (topic, partition, record.offset() or 0)
        return classify_raw(record.value(), record.key(), headers, *place, 1, config.projects, framing)

    for record in read_topic(config.kafka, topic):
        ahead = unread.ahead_of(record)
        if not may_hold(record):
            continue
        # Its own partition gives a hit without an id the id that the router has given it; with partition 0 nothing is moved.
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


def _filter(hit_id: str) -> Callable[[Message], bool]:
    """Returns what leaves records out that cannot hold the hit, without decoding them: most of the topic."""
    needle, may_be_derived = hit_id.encode(), len(hit_id) == _DERIVED_ID_LENGTH

    def may_hold(record: Message) -> bool:
        value = record.value() or b""
        # A backslash may write any character of the id in another way.
        return may_be_derived or needle in (record.key() or b"") or needle in value or b"\\" in value

    return may_hold
