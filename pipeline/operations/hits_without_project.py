"""Hits that no project of the file owns: their header `project` is missing, or names none."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from confluent_kafka import Message

from pipeline.config.models import Config
from pipeline.config.problems import nearest
from pipeline.operations.dead_letters import Letter
from pipeline.operations.read_topic import header_texts


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


def hits_without_project(config: Config, records: Iterable[Message], letters: Collection[Letter]) -> list[Unowned]:
    """Return what the topics hold of a hit under no project of `config`, by the project that was named. Pure.

    `records` are those of hits-raw without a project of the file, `letters` its dead letters; a record that the router has not
    read yet has none.
    """
    found: dict[str, Unowned] = {}
    own = {(letter.origin.partition, letter.origin.offset): letter for letter in letters if letter.stage == "route"}
    left = {letter.position: letter for letter in letters if letter.project not in config.projects}
    for record in records:
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
