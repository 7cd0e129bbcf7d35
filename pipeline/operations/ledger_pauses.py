"""Determines from ledger entries which connections are paused. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.codec.ledger_entry import MISCONFIGURED, RESUMED, SET_ASIDE, Entry, LedgerEntry

_NOT_ACCEPTED = frozenset({"gave_up", "misconfigured_alone"})
"""Reasons of dead letters that do not show that the destination accepts hits."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A paused connection: since when, in milliseconds since 1970, and why. Its hits stay on its topic.

    If it is misconfigured, it waits for its operator, else for its destination to recover.
    """

    since_ms: int
    message: str
    is_misconfigured: bool = True


def note_pause(pauses: dict[str, Pause], entry: LedgerEntry) -> None:
    """Update `pauses` with `entry`. A delivery ends a pause."""
    if entry.role == "pause":
        for e in entry.counts:
            if e.outcome == RESUMED:
                pauses.pop(e.connection, None)
            else:
                pauses[e.connection] = Pause(entry.at_ms, e.reason, e.outcome == MISCONFIGURED)
    elif entry.role == "deliver" and not entry.is_gap and any(map(_shows_recovery, entry.counts)):
        pauses.pop(entry.owner, None)
    elif entry.role == "set_aside":
        for e in entry.counts:
            if e.outcome == "delivered":
                pauses.pop(e.connection, None)


def _shows_recovery(counted: Entry) -> bool:
    """Return whether an outcome shows that the destination works; hits given up or set aside do not."""
    return counted.reason not in _NOT_ACCEPTED and counted.outcome != SET_ASIDE
