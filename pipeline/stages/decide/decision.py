"""Decides for one connection, by the rules of contract.md, section 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pipeline.codec.integrations import Entry, Integrations
from pipeline.stages.decide.condition import Condition
from pipeline.stages.decide.events import EventSelection


class FilterReason(StrEnum):
    """Why a connection does not get a hit."""

    OTHER_PROJECT = "other_project"
    EVENT_NOT_SELECTED = "event_not_selected"
    WHEN_FALSE = "when_false"
    WHEN_FAILED = "when_failed"
    SAMPLED_OUT = "sampled_out"
    DISABLED_BY_SENDER = "disabled_by_sender"
    DISABLED_BY_ALL = "disabled_by_all"


@dataclass(frozen=True, slots=True)
class OptionsFault:
    """The sender's options are invalid for the destination, so the hit becomes a dead letter of this connection."""

    message: str
    path: str


CheckOptions = Callable[[bytes], tuple[str, str] | None]
"""From the options, a JSON object, to None, or to an error message and the path within the options."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The routing rules of one connection; `aliases` are the destination's other names in `integrations`."""

    connection: str
    destination: str
    aliases: tuple[str, ...] = ()
    serves_project: bool = True
    events: EventSelection | None = None
    when: Condition | None = None
    sample: float = 1.0
    check_options: CheckOptions | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for one connection. It gets the hit if `reason` and `fault` are None; `options` is a JSON object or None."""

    connection: str
    reason: FilterReason | None = None
    options: bytes | None = None
    fault: OptionsFault | None = None


Decisions = tuple[Decision, ...]
"""One decision per connection, in the order of the configuration. Equal results are usually the same cached object."""


def decide(integrations: Integrations, candidate: Candidate) -> Decision:
    """Apply rules 2 to 5 to the hit's `integrations`; rule 1 was applied before."""
    name = candidate.connection
    entry: Entry | None = None
    for key in (name, candidate.destination, *candidate.aliases):
        entry = integrations.entries.get(key)
        if entry is not None:
            break
    if entry is None:
        return Decision(name, FilterReason.DISABLED_BY_ALL if integrations.everything is False else None)
    if entry is False:
        return Decision(name, FilterReason.DISABLED_BY_SENDER)
    if not isinstance(entry, bytes):
        return Decision(name)
    wrong = candidate.check_options(entry) if candidate.check_options is not None else None
    if wrong is not None:
        message, path = wrong
        return Decision(name, None, entry, OptionsFault(message, f"integrations.{key}{path and '.'}{path}"))
    return Decision(name, None, entry)
