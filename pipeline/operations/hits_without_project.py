"""Groups hits that no project of the file owns: their header `project` is missing or unknown."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from confluent_kafka import Message

from pipeline.config.models import Config
from pipeline.config.problems import nearest
from pipeline.operations.dead_letters import StoredDeadLetter
from pipeline.operations.read_topic import header_texts


@dataclass(slots=True)
class Unowned:
    """Records and dead letters with one hitId; `named` is the value of their header `project`, "" if it is missing."""

    named: str
    records: list[tuple[Message, str]] = field(default_factory=list)
    """Each with a note on its state."""
    dead: list[StoredDeadLetter] = field(default_factory=list)

    def why(self, projects: Collection[str]) -> str:
        """Return the problem with the header, with the most similar project."""
        if not self.named:
            return "without the header `project`"
        return f"whose header `project` names {self.named!r}{nearest(self.named, projects)}"


def hits_without_project(
    config: Config, records: Iterable[Message], letters: Collection[StoredDeadLetter]
) -> list[Unowned]:
    """Return the records of a hit whose header `project` names no project of `config`, by the value of that header. Pure.

    `records` are those of the hit in hits-raw whose project is not in the file. `letters` are all its dead letters. A
    record that the router has not read yet has no dead letter.
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
    for letter in left.values():  # the record was deleted, or its project was removed from the file
        found.setdefault(letter.project, Unowned(letter.project)).dead.append(letter)
    return list(found.values())
