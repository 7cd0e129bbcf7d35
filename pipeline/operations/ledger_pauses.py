"""Connections that wait, as the ledger's entries say. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.codec.ledger_entry import MISCONFIGURED, RESUMED, SET_ASIDE, Entry, LedgerEntry

_NO_ANSWERS = frozenset({"gave_up", "misconfigured_alone"})
"""Reasons of dead letters whose destination took no hit."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A connection waits: since when, in milliseconds since 1970, and why. Its hits stay in its topic.

    Misconfigured it waits for its operator, else for its destination to recover.
    """

    since_ms: int
    message: str
    is_misconfigured: bool = True


def note_pause(pauses: dict[str, Pause], entry: LedgerEntry) -> None:
    """Take over what `entry` says about connections that wait; a delivery ends a pause."""
    if entry.role == "pause":
        for e in entry.counts:
            if e.outcome == RESUMED:
                pauses.pop(e.connection, None)
            else:
                pauses[e.connection] = Pause(entry.at_ms, e.reason, e.outcome == MISCONFIGURED)
    elif entry.role == "deliver" and not entry.is_gap and any(map(_shows_an_answer, entry.counts)):
        pauses.pop(entry.owner, None)
    elif entry.role == "set_aside":
        for e in entry.counts:
            if e.outcome == "delivered":
                pauses.pop(e.connection, None)


def _shows_an_answer(counted: Entry) -> bool:
    """A hit that is given up, set aside or expired does not show that the destination is well."""
    return counted.reason not in _NO_ANSWERS and counted.outcome != SET_ASIDE
