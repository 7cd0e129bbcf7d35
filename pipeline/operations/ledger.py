"""The ledger: do all sums add up? (contract.md, section 2; product.md, "Commands")"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.codec.ledger_entry import Entry, LedgerEntry, decode_ledger_entry
from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import read_topic
from pipeline.registry import declared_destinations


@dataclass(slots=True)
class HitSums:
    """received = unique + duplicates + dead; `conflicting` are the duplicates that had other content than the first."""

    received: int = 0
    unique: int = 0
    duplicates: int = 0
    dead: int = 0
    conflicting: int = 0

    @property
    def adds_up(self) -> bool:
        """Is every received hit accounted for?"""
        return self.received == self.unique + self.duplicates + self.dead


@dataclass(slots=True)
class ConnectionSums:
    """unique = routed + filtered + refused; routed + replayed + refused = delivered + skipped + dead + pending.

    `replayed` are hits that an operator has sent again; `refused` are the dead letters that the router wrote for this
    connection, because the sender's options do not fit.
    """

    routed: int = 0
    filtered: int = 0
    refused: int = 0
    replayed: int = 0
    delivered: int = 0
    skipped: int = 0
    dead: int = 0
    topic_only: bool = False

    @property
    def unique(self) -> int:
        """All hits that this connection was asked about."""
        return self.routed + self.filtered + self.refused

    @property
    def pending(self) -> int:
        """On the topic, not yet taken to the sink; below zero when the sums are wrong."""
        return self.routed + self.replayed + self.refused - self.delivered - self.skipped - self.dead


@dataclass(frozen=True, slots=True)
class Pause:
    """A connection is misconfigured: since when, in milliseconds since 1970, and why. Its hits wait in its topic."""

    since_ms: int
    message: str


@dataclass(slots=True)
class Ledger:
    """Sums over all entries; `reasons` counts dead and filtered hits, `unknown_names` what `integrations` named in vain.

    `notes` counts what did not stop a hit: (outcome, reason), such as ("enrichment_failed", "geo"). `paused` are the connections
    that wait for their operator; the next delivery of one ends it. `gone` are no longer in the file, and nobody delivers their hits.
    """

    hits: HitSums = field(default_factory=HitSums)
    connections: dict[str, ConnectionSums] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    unknown_names: Counter[str] = field(default_factory=Counter)
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)
    paused: dict[str, Pause] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def adds_up(self) -> bool:
        """True when nothing is missing and nothing is counted twice."""
        return not self.problems


def sum_ledger(entries: Iterable[LedgerEntry], topic_only: Iterable[str] = ()) -> Ledger:
    """Sum `entries` up; pure. The connections in `topic_only` are delivered as soon as they are routed."""
    ledger = Ledger()
    without_sink = frozenset(topic_only)
    ranges: dict[tuple[str, str, str, int], list[tuple[int, int]]] = {}
    for entry in entries:
        names = {e.connection for e in entry.counts} - {""}
        owner = next(iter(names), "") if entry.role == "deliver" else ""
        if entry.role == "pause":
            ledger.paused |= {e.connection: Pause(entry.at_ms, e.reason) for e in entry.counts}
            continue
        if any(e.reason != "gave_up" for e in entry.counts):  # who gives a hit up has not been answered otherwise
            ledger.paused.pop(owner, None)
        if entry.role != "replay":
            ranges.setdefault((entry.role, owner, entry.topic, entry.partition), []).append(
                (entry.first_offset, entry.next_offset)
            )
        for counted, count in entry.counts.items():
            _add(ledger, entry.role, counted, count, without_sink)
        if entry.role == "route":
            ledger.problems += _route_problems(entry)
    for (role, _, topic, partition), parts in ranges.items():
        end = -1
        for first, following in sorted(parts):
            if first < end:
                ledger.problems.append(f"{role}: {topic}-{partition} {first}-{end - 1} is counted twice")
            end = max(end, following)
    if not ledger.hits.adds_up:
        ledger.problems.append(f"hits: {ledger.hits.received} received, but the parts make another sum")
    for name, sums in ledger.connections.items():
        if sums.pending < 0:
            ledger.problems.append(f"{name}: {-sums.pending} more outcomes than routed hits")
    return ledger


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
    elif outcome == "dead":
        sums.dead += count
        sums.refused += count if role == "route" else 0
    if reason:
        ledger.reasons[connection, outcome, reason] += count


def read_ledger(config: Config) -> Ledger:
    """The ledger as the topic has it now."""
    names = TopicNames(config.kafka.topic_prefix)
    kinds = declared_destinations()
    topic_only = [n for n, c in config.connections.items() if kinds[c.destination].sink is None]
    records = read_topic(config.kafka, names.ledger)
    ledger = sum_ledger((decode_ledger_entry(record.value() or b"") for record in records), topic_only)
    for name in config.connections:
        ledger.connections.setdefault(name, ConnectionSums(topic_only=name in topic_only))
    ledger.gone = [n for n, sums in ledger.connections.items() if sums.pending and n not in config.connections]
    ledger.paused = {name: pause for name, pause in ledger.paused.items() if name in config.connections}
    return ledger
