"""Hits that no project of the file owns: their header `project` is missing, or names none."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from confluent_kafka import Message

from pipeline.codec.raw_record import RAW_HIT_SCHEMA, Dead, classify_raw
from pipeline.config.load import nearest
from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames
from pipeline.operations.dead_letters import Letter
from pipeline.operations.hit_match import HitMatch
from pipeline.operations.read_topic import framing_of, header_texts, read_topic


@dataclass(slots=True)
class Unowned:
    """Records and dead letters with one hitId; `named` is what their header `project` says, "" where it is missing."""

    named: str
    records: list[tuple[Message, str]] = field(default_factory=list)
    """Each with what became of it."""
    dead: list[Letter] = field(default_factory=list)

    def why(self, projects: Collection[str]) -> str:
        """Return what is wrong with the header, and the project that may be meant."""
        if not self.named:
            return "without the header `project`"
        return f"whose header `project` names {self.named!r}{nearest(self.named, projects)}"


def hits_without_project(config: Config, match: HitMatch, letters: list[Letter]) -> list[Unowned]:
    """Return what the topics hold of a hit under no project of `config`, by the project that was named.

    `letters` are its dead letters. Reads hits-raw whole; a record that the router has not read yet has no dead letter.
    """
    found: dict[str, Unowned] = {}
    own = {(letter.origin.partition, letter.origin.offset): letter for letter in letters if letter.stage == "route"}
    left = {letter.position: letter for letter in letters if letter.project not in config.projects}
    for record in _unowned(config):
        if not match.matches(record.key(), record.value()):
            continue
        named = header_texts(record).get("project", "")
        unowned = found.setdefault(named, Unowned(named))
        letter = own.get((record.partition() or 0, record.offset() or 0))
        if letter is None:
            unowned.records.append((record, "no dead letter yet: the router has not read it"))
            continue
        unowned.records.append((record, f"dead letter {letter.position}"))
        if left.pop(letter.position, None) is not None:
            unowned.dead.append(letter)
    for letter in left.values():  # the record is gone, or was written for a project that has left the file
        found.setdefault(letter.project, Unowned(letter.project)).dead.append(letter)
    return list(found.values())


def _unowned(config: Config) -> Iterator[Message]:
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    framing = framing_of(config, RAW_HIT_SCHEMA)
    for record in read_topic(config.kafka, topic):
        if header_texts(record).get("project") in config.projects:
            continue
        found = classify_raw(
            record.value(),
            record.key(),
            record.headers(),  # type: ignore[arg-type] # a list, whatever the stub says
            topic,
            record.partition() or 0,
            record.offset() or 0,
            config.kafka.partitions,
            config.projects,
            framing,
        )
        if isinstance(found, Dead) and found.reason == "unknown_project":
            yield record
