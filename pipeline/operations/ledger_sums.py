"""Sums the entries of the ledger (contract.md, section 2). Pure; ledger.py compares the sums with the topics."""

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
"""Most different names, paths or reasons that are kept; senders can choose them. The rare ones are summed."""


@dataclass(slots=True)
class HitSums:
    """The counts of received hits: received = unique + duplicates + dead.

    `conflicting` counts the duplicates whose content differs from the first hit. `expired_at_most` counts offsets of hits-raw that
    retention deleted before a router read them; they are not part of `received`.
    """

    received: int = 0
    unique: int = 0
    duplicates: int = 0
    dead: int = 0
    conflicting: int = 0
    expired_at_most: int = 0

    @property
    def adds_up(self) -> bool:
        """Whether every received hit is accounted for."""
        return self.received == self.unique + self.duplicates + self.dead


@dataclass(slots=True)
class ConnectionSums:
    """The counts of one connection, for which two equations hold.

    - unique = routed + filtered + refused
    - earlier + routed + replayed + refused = delivered + skipped + dead + expired + missing + pending

    `replayed` counts hits that an operator replayed. `refused` counts dead letters that the router wrote for this connection,
    because the sender's options are invalid. `earlier`, `expired`, `expired_at_most` and `missing` come from a Settlement.
    `gap_offsets` counts offsets that workers recorded as deleted by retention, commit markers included. `set_aside` counts the
    pending hits on the topic `set-aside`.
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
        """All hits for which the router decided about this connection."""
        return self.routed + self.filtered + self.refused

    @property
    def outstanding(self) -> int:
        """Hits routed to this connection without an outcome; negative if the sums are wrong or incomplete."""
        return self.routed + self.replayed + self.refused - self.delivered - self.skipped - self.dead

    @property
    def pending(self) -> int:
        """Hits on the topic that have no outcome yet, or that are set aside."""
        return self.outstanding + self.earlier - self.expired - self.missing


@dataclass(frozen=True, slots=True)
class Backlog:
    """The unread records of a connection's topic or of hits-raw. Times are in milliseconds since 1970.

    `offsets` is an upper bound of the records; `records` is their number, if they were counted. `unrecorded` counts offsets
    that retention deleted and no worker has recorded yet. `retention_ms` is None without a limit. `has_worker` is only
    meaningful if records wait or were deleted.
    """

    offsets: int = 0
    records: int | None = None
    unrecorded: int = 0
    oldest_ms: int | None = None
    retention_ms: int | None = None
    has_worker: bool = True

    @property
    def expires_ms(self) -> int | None:
        """Earliest time at which retention deletes the oldest record; None if no record waits, or without a limit."""
        return None if self.oldest_ms is None or self.retention_ms is None else self.oldest_ms + self.retention_ms


@dataclass(frozen=True, slots=True)
class SetAsideHits:
    """The hits of one connection on the topic `set-aside`.

    `message` is the destination's response to the last one. `next_ms` is the next retry, in milliseconds since 1970.
    """

    count: int
    message: str
    next_ms: int


@dataclass(slots=True)
class Ledger:
    """The sums over all entries, and the state of the topics. A connection "" stands for hits-raw.

    - `reasons` counts dead and filtered hits by (connection, outcome, reason).
    - `unknown_names` counts names in `integrations` that match no connection.
    - `notes` counts events that did not stop a hit, by (outcome, reason), such as ("enrichment_failed", "geo").
    - Of these three, the most frequent keys are kept and the others are summed as "others".
    - `pauses` holds the paused connections.
    - `removed` holds connections that are no longer in the file, so no worker delivers their hits.
    - `is_complete` is False if the ledger's own retention has deleted entries older than `begins_ms`.
    - `counted_to` holds, by connection and partition, the offset up to which the entries count.
    - `set_aside_expired_at_most` counts offsets of the topic `set-aside` that retention deleted before they were read.
    """

    hits: HitSums = field(default_factory=HitSums)
    connections: dict[str, ConnectionSums] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    unknown_names: Counter[str] = field(default_factory=Counter)
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)
    pauses: dict[str, Pause] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    is_complete: bool = True
    begins_ms: int | None = None
    counted_to: dict[str, dict[Place, int]] = field(default_factory=dict)
    backlogs: dict[str, Backlog] = field(default_factory=dict)
    set_aside: dict[str, SetAsideHits] = field(default_factory=dict)
    set_aside_expired_at_most: int = 0
    set_aside_counted_to: dict[Place, int] = field(default_factory=dict)
    """By partition of `set-aside`, the offset up to which the entries count."""

    @property
    def paused(self) -> dict[str, Pause]:
        """The connections that are paused until their operator fixes them."""
        return {name: pause for name, pause in self.pauses.items() if pause.is_misconfigured}

    @property
    def failing(self) -> dict[str, Pause]:
        """The connections that are paused until their destination recovers."""
        return {name: pause for name, pause in self.pauses.items() if not pause.is_misconfigured}

    @property
    def expired(self) -> dict[str, tuple[int, int]]:
        """By connection of the file, the lower and upper bound of the hits that retention deleted before they were read."""
        found = {
            name: (sums.expired, sums.expired_at_most)
            for name, sums in self.connections.items()
            if name not in self.removed
        }
        return {name: counts for name, counts in {"": (0, self.hits.expired_at_most), **found}.items() if counts[1]}

    @property
    def adds_up(self) -> bool:
        """Whether no hit is missing, counted twice or expired."""
        return not self.problems and not self.expired and not self.set_aside_expired_at_most


def sum_ledger(entries: Iterable[LedgerEntry], topic_only: Iterable[str] = (), is_complete: bool = True) -> Ledger:
    """Return the sums of `entries`. Hits for the connections in `topic_only` count as delivered once they are routed.

    If `is_complete` is False, older entries were deleted, so there may be more outcomes than routed hits.
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
            counted = ledger.set_aside_counted_to if is_aside else ledger.counted_to.setdefault(owner, {})
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
        ledger.problems.append(f"hits: {ledger.hits.received} received, but unique + duplicates + dead is not the same")
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
    """Return a problem for each connection of one entry without exactly one decision per unique hit."""
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
    if reason and outcome != SET_ASIDE:  # hits that are still set aside are reported separately
        ledger.reasons[connection, outcome, reason] += count
