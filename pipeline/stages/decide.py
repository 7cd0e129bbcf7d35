"""Decide: which connections get a hit, with which options, and why not the others (contract.md, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipeline.codec.integrations import Entry, Integrations
from pipeline.config.models import Config

_REMEMBERED = 4096


class FilterReason(StrEnum):
    """Why a connection does not get a hit."""

    OTHER_PROJECT = "other_project"
    DISABLED_BY_SENDER = "disabled_by_sender"
    DISABLED_BY_ALL = "disabled_by_all"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connection as this stage sees it; `aliases` are the destination's other names in `integrations`."""

    connection: str
    destination: str
    aliases: tuple[str, ...] = ()
    serves_project: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """One connection's answer. `reason` is None when it gets the hit; `options` is a JSON object or None."""

    connection: str
    reason: FilterReason | None = None
    options: bytes | None = None


def decide(integrations: Integrations, candidate: Candidate) -> Decision:
    """The first rule of contract.md, section 3 that applies."""
    name = candidate.connection
    if not candidate.serves_project:
        return Decision(name, FilterReason.OTHER_PROJECT)
    entry: Entry | None = None
    for key in (name, candidate.destination, *candidate.aliases):
        entry = integrations.entries.get(key)
        if entry is not None:
            break
    if entry is None:
        return Decision(name, FilterReason.DISABLED_BY_ALL if integrations.everything is False else None)
    if entry is False:
        return Decision(name, FilterReason.DISABLED_BY_SENDER)
    return Decision(name, None, entry if isinstance(entry, bytes) else None)


class RoutingPlan:
    """All connections as one project sees them; remembers the decisions of dictionaries that come again."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = tuple(candidates)
        self._names = {"All"} | {name for c in candidates for name in (c.connection, c.destination, *c.aliases)}
        self._remembered: dict[bytes | None, tuple[Decision, ...]] = {}

    def decide(self, raw: bytes | None, integrations: Integrations) -> tuple[Decision, ...]:
        """One decision per connection; `raw` are the bytes that `integrations` was read from."""
        decisions = self._remembered.get(raw)
        if decisions is None:
            decisions = tuple(decide(integrations, candidate) for candidate in self.candidates)
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[raw] = decisions
        return decisions

    def unknown_names(self, integrations: Integrations) -> list[str]:
        """Names in the dictionary that no connection answers to."""
        return [name for name in integrations.entries if name not in self._names]


def routing_plans(config: Config) -> dict[str, RoutingPlan]:
    """One plan per project."""
    return {
        project: RoutingPlan(
            [
                Candidate(
                    name,
                    connection.destination,
                    serves_project=connection.projects is None or project in connection.projects,
                )
                for name, connection in config.connections.items()
            ]
        )
        for project in config.projects
    }
