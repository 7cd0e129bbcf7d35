"""The sums over the entries of the ledger (contract.md, section 2). Pure; ledger.py compares them with what the topics hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.codec.bounded_counts import OTHERS, CountsFolder
from pipeline.codec.ledger_entry import SET_ASIDE, SET_ASIDE_ENDED, Entry, LedgerEntry
from pipeline.kafka.watermarks import Place
from pipeline.operations.ledger_pauses import Pause, note_pause
from pipeline.operations.settlement import Range, width_outside

_MOST_DETAILS = 500
"""Names, paths and reasons of one group that are shown by name; senders choose some of them. The rest is summed."""


@dataclass(slots=True)
class HitSums:
    """received = unique + duplicates + dead; `conflicting` are the duplicates that had other content than the first.

    `expired_at_most` are offsets of hits-raw that retention took before a router read them; received has none of them.
    """

    received: int = 0
    unique: int = 0
    duplicates: int = 0
    dead: int = 0
    conflicting: int = 0
    expired_at_most: int = 0

    @property
    def adds_up(self) -> bool:
        """Is every received hit accounted for?"""
        return self.received == self.unique + self.duplicates + self.dead


@dataclass(slots=True)
class ConnectionSums:
    """unique = routed + filtered + refused, and
    earlier + routed + replayed + refused = delivered + skipped + dead + expired + missing + pending.

    `replayed` are hits that an operator has sent again; `refused` are the dead letters that the router wrote for this
    connection, because the sender's options do not fit. `earlier`, `expired`, `expired_at_most` and `missing` are those of
    a Settlement; `gap_offsets` is what workers recorded as taken by retention, commit markers included. `set_aside` are those
    of the pending hits that wait on the topic `set-aside`.
    """

    routed: int = 0
    filtered: int = 0
    refused: int = 0
    replayed: int = 0
    delivered: int = 0
    skipped: int = 0
    dead: int = 0
    topic_only: bool = False
    earlier: int = 0
    expired: int = 0
    expired_at_most: int = 0
    missing: int = 0
    gap_offsets: int = 0
    set_aside: int = 0

    @property
    def unique(self) -> int:
        """All hits that this connection was asked about."""
        return self.routed + self.filtered + self.refused

    @property
    def outstanding(self) -> int:
        """Routed to this connection and without an outcome; below zero when the sums are wrong or incomplete."""
        return self.routed + self.replayed + self.refused - self.delivered - self.skipped - self.dead

    @property
    def pending(self) -> int:
        """On the topic, not yet taken to the sink; or set aside."""
        return self.outstanding + self.earlier - self.expired - self.missing


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the topic of a connection holds unread, or hits-raw. Times are in milliseconds since 1970.

    `offsets` is an upper bound of the records; `records` is their number where they were counted. `unrecorded` offsets were
    taken by retention, and no worker has recorded that yet. `retention_ms` is None where records are kept for ever.
    `has_worker` is known where something waits or was taken.
    """

    offsets: int = 0
    records: int | None = None
    unrecorded: int = 0
    oldest_ms: int | None = None
    retention_ms: int | None = None
    has_worker: bool = True

    @property
    def expires_ms(self) -> int | None:
        """Not before this moment retention takes the oldest record; None where nothing waits, or where it never does."""
        return None if self.oldest_ms is None or self.retention_ms is None else self.oldest_ms + self.retention_ms


@dataclass(frozen=True, slots=True)
class SetAsideHits:
    """The hits of one connection that wait on the topic `set-aside`: what its destination said of the last one, and when the
    first of them is asked again, in milliseconds since 1970."""

    count: int
    message: str
    next_ms: int


@dataclass(slots=True)
class Ledger:
    """Sums over all entries.

    `reasons` counts dead and filtered hits, `unknown_names` what `integrations` named in vain. Of many distinct ones the most
    frequent are kept by name, and the rest is summed as "others". `notes` counts what did not
    stop a hit: (outcome, reason), such as ("enrichment_failed", "geo"). `pauses` are the connections that wait; the next
    delivery of one ends it. `gone` are no longer in the file, and nobody delivers their hits. Without `is_complete` the
    ledger's own retention has taken entries from before `begins_ms`, the time of the oldest one. `counted` is by
    connection ("" for hits-raw) how far its entries go in each partition; `backlogs` are by connection, too. `set_aside` are the
    hits that were set aside, by connection; of their topic retention took `set_aside_expired_at_most` offsets before they were read.
    """

    hits: HitSums = field(default_factory=HitSums)
    connections: dict[str, ConnectionSums] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    unknown_names: Counter[str] = field(default_factory=Counter)
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)
    pauses: dict[str, Pause] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    is_complete: bool = True
    begins_ms: int | None = None
    counted: dict[str, dict[Place, int]] = field(default_factory=dict)
    backlogs: dict[str, Backlog] = field(default_factory=dict)
    set_aside: dict[str, SetAsideHits] = field(default_factory=dict)
    set_aside_expired_at_most: int = 0
    set_aside_read: dict[Place, int] = field(default_factory=dict)
    """How far the entries go in each partition of `set-aside`."""

    @property
    def paused(self) -> dict[str, Pause]:
        """The connections that wait for their operator."""
        return {name: pause for name, pause in self.pauses.items() if pause.is_misconfigured}

    @property
    def failing(self) -> dict[str, Pause]:
        """The connections that wait for their destination."""
        return {name: pause for name, pause in self.pauses.items() if not pause.is_misconfigured}

    @property
    def expired(self) -> dict[str, tuple[int, int]]:
        """By connection ("" for hits-raw) at least and at most how many hits retention took before they were read.

        Nobody waits for those of a connection that has left the file.
        """
        found = {
            name: (sums.expired, sums.expired_at_most)
            for name, sums in self.connections.items()
            if name not in self.gone
        }
        return {name: counts for name, counts in {"": (0, self.hits.expired_at_most), **found}.items() if counts[1]}

    @property
    def adds_up(self) -> bool:
        """True when nothing is missing, nothing is counted twice and nothing has expired."""
        return not self.problems and not self.expired and not self.set_aside_expired_at_most


def sum_ledger(entries: Iterable[LedgerEntry], topic_only: Iterable[str] = (), is_complete: bool = True) -> Ledger:
    """Sum `entries` up; pure. The connections in `topic_only` are delivered as soon as they are routed.

    Without `is_complete` older entries are gone: then outcomes may outnumber the routed hits.
    """
    ledger = Ledger(is_complete=is_complete)
    without_sink = frozenset(topic_only)
    read: dict[tuple[str, str, Place], list[Range]] = {}
    gaps: dict[tuple[str, str, Place], list[Range]] = {}
    folders: tuple[CountsFolder[Any], ...] = (
        CountsFolder(ledger.unknown_names, _MOST_DETAILS, lambda name: OTHERS),
        CountsFolder(ledger.notes, _MOST_DETAILS, lambda note: (note[0], OTHERS)),
        CountsFolder(ledger.reasons, _MOST_DETAILS, lambda reason: (*reason[:2], OTHERS)),
    )
    for entry in entries:
        note_pause(ledger.pauses, entry)
        if entry.role == "pause":
            continue
        ledger.begins_ms = min(entry.at_ms, entry.at_ms if ledger.begins_ms is None else ledger.begins_ms)
        owner, is_gap = entry.owner, entry.is_gap
        if entry.role != "replay":
            place = (entry.topic, entry.partition)
            ranges = (gaps if is_gap else read).setdefault((entry.role, owner, place), [])
            ranges.append((entry.first_offset, entry.next_offset))
            is_aside = entry.role == SET_ASIDE
            counted = ledger.set_aside_read if is_aside else ledger.counted.setdefault(owner, {})
            counted[place] = max(counted.get(place, 0), entry.next_offset)
        if is_gap:
            continue
        for count_of, count in entry.counts.items():
            _add(ledger, entry.role, count_of, count, without_sink)
        for folder in folders:
            folder.fold()
        if entry.role == "route":
            ledger.problems += _route_problems(entry)
    for (role, owner, place), parts in gaps.items():
        width = width_outside(parts, read.get((role, owner, place), ()))
        if role == SET_ASIDE:
            ledger.set_aside_expired_at_most += width
        elif owner:
            ledger.connections.setdefault(owner, ConnectionSums(topic_only=owner in without_sink)).gap_offsets += width
        else:
            ledger.hits.expired_at_most += width
    for (role, _, place), parts in read.items():
        ledger.problems += _counted_twice(role, place, parts)
    if not ledger.hits.adds_up:
        ledger.problems.append(f"hits: {ledger.hits.received} received, but the parts make another sum")
    for name, sums in ledger.connections.items():
        if is_complete and sums.outstanding < 0:
            ledger.problems.append(f"{name}: {-sums.outstanding} more outcomes than routed hits")
    return ledger


def _counted_twice(role: str, place: Place, ranges: list[Range]) -> list[str]:
    found, end = [], -1
    for first, following in sorted(ranges):
        if first < end:
            found.append(f"{role}: {place[0]}-{place[1]} {first}-{end - 1} is counted twice")
        end = max(end, following)
    return found


def _route_problems(entry: LedgerEntry) -> list[str]:
    """Within one entry every connection decides about every unique hit; entries may differ in their connections."""
    unique = sum(count for e, count in entry.counts.items() if e.outcome == "unique")
    decided: Counter[str] = Counter()
    for e, count in entry.counts.items():
        if e.connection and e.outcome != "replayed":
            decided[e.connection] += count
    where = f"{entry.topic}-{entry.partition} at {entry.first_offset}"
    return [
        f"{name}: {count} decisions about {unique} unique hits ({where})"
        for name, count in decided.items()
        if count != unique
    ]


def _add(ledger: Ledger, role: str, counted: Entry, count: int, without_sink: frozenset[str]) -> None:
    _, connection, outcome, reason = counted
    if not connection:
        hits = ledger.hits
        if outcome == "unique":
            hits.unique += count
        elif outcome == "duplicate":
            hits.duplicates += count
        elif outcome == "conflicting":
            hits.conflicting += count
        elif outcome == "dead":
            hits.dead += count
            ledger.reasons["", outcome, reason] += count
        elif outcome == "received":
            hits.received += count
        elif outcome == "unknown_integration":
            ledger.unknown_names[reason] += count
        elif reason:
            ledger.notes[outcome, reason] += count
        return
    sums = ledger.connections.setdefault(connection, ConnectionSums(topic_only=connection in without_sink))
    if outcome == "routed":
        sums.routed += count
        if sums.topic_only:
            sums.delivered += count
    elif outcome == "replayed":
        sums.replayed += count
        if sums.topic_only:
            sums.delivered += count
    elif outcome == "filtered":
        sums.filtered += count
    elif outcome == "delivered":
        sums.delivered += count
    elif outcome == "skipped":
        sums.skipped += count
    elif outcome == SET_ASIDE:
        sums.set_aside += count
    elif outcome == SET_ASIDE_ENDED:
        sums.set_aside -= count
    elif outcome == "dead":
        sums.dead += count
        sums.refused += count if role == "route" else 0
    if reason and outcome != SET_ASIDE:  # the hits that still wait are shown by themselves
        ledger.reasons[connection, outcome, reason] += count
