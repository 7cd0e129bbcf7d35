"""The verdict of a soak: each accepted hit is delivered, a dead letter, or expired, and all of it is counted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.codec.ledger_entry import LedgerEntry

EXPIRED = "expired"
SET_ASIDE_TOPIC = "set-aside"


class Place(NamedTuple):
    """Where a record was."""

    partition: int
    offset: int


class Gap(NamedTuple):
    """Offsets `first` <= offset < `end` that retention took before a worker read them."""

    topic: str
    partition: int
    first: int
    end: int


@dataclass(slots=True)
class Books:
    """What was sent, and what the watchers saw before retention took it.

    `accepted` got a 204; `sent` is every hitId with the connections that it must reach. `places` holds, by topic and
    hitId, the committed records. `taken` holds, by connection, what its destination answered with 2xx.
    """

    sent: dict[str, frozenset[str]] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    places: dict[str, dict[str, list[Place]]] = field(default_factory=dict)
    aside: dict[tuple[str, str], list[Place]] = field(default_factory=dict)
    """By connection and hitId the places of those that were set aside."""
    letters: set[tuple[str, str]] = field(default_factory=set)
    """(connection, hitId) of dead letters; the connection is "" for hits that no connection got."""
    entries: list[LedgerEntry] = field(default_factory=list)
    taken: Mapping[str, Counter[str]] = field(default_factory=dict)


@dataclass(slots=True)
class SoakVerdict:
    """`problems` is empty when the promise was kept; `counts` holds, by connection, how many hits ended how."""

    problems: list[str] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)


def gaps_of(entries: Iterable[LedgerEntry], role: str) -> list[Gap]:
    """Return the gaps that workers of `role` have recorded."""
    return [
        Gap(entry.topic, entry.partition, entry.first_offset, entry.next_offset)
        for entry in entries
        if entry.role == role and any(counted.outcome == EXPIRED for counted in entry.counts)
    ]


def judge(books: Books, hits_raw: str, topics: Mapping[str, str]) -> SoakVerdict:
    """Compare. `topics` maps each connection to its topic; one without a destination server has no entry in `taken`."""
    verdict = SoakVerdict()
    route_gaps = gaps_of(books.entries, "route")
    deliver_gaps = gaps_of(books.entries, "deliver") + gaps_of(books.entries, "set_aside")
    raw = books.places.get(hits_raw, {})
    for hit_id in sorted(books.accepted):
        for connection in sorted(books.sent[hit_id]):
            places = books.places.get(topics[connection], {}).get(hit_id, [])
            end = _end_of(books, hit_id, connection, topics[connection], places, deliver_gaps)
            if not places:
                end = _end_unrouted(books, hit_id, raw.get(hit_id, []), hits_raw, route_gaps)
            verdict.counts.setdefault(connection, Counter())[end] += 1
            if len(places) > 1:
                verdict.problems.append(f"{connection}: {hit_id} is on its topic {len(places)} times: {places}")
            if end == "lost":
                verdict.problems.append(
                    f"{connection}: {hit_id} is lost; on its topic at {places}, raw at {raw.get(hit_id)}"
                )
    for connection, topic in topics.items():
        verdict.problems += [
            f"{connection}: nobody sent {hit_id}" for hit_id in books.places.get(topic, {}) if hit_id not in books.sent
        ]
    verdict.problems += _uncounted(books, topics, deliver_gaps)
    return verdict


def _end_of(books: Books, hit_id: str, connection: str, topic: str, places: list[Place], gaps: list[Gap]) -> str:
    if not places:
        return "lost"
    if connection not in books.taken or books.taken[connection][hit_id]:
        return "delivered"
    if (connection, hit_id) in books.letters:
        return "dead"
    return EXPIRED if _has_expired(books, hit_id, connection, topic, places, gaps) else "lost"


def _has_expired(
    books: Books, hit_id: str, connection: str, topic: str, places: Iterable[Place], gaps: list[Gap]
) -> bool:
    aside = books.aside.get((connection, hit_id))
    if aside:  # it moved there from its own topic
        return any(_is_in(place, SET_ASIDE_TOPIC, gaps) for place in aside)
    return all(_is_in(place, topic, gaps) for place in places)


def _end_unrouted(books: Books, hit_id: str, places: list[Place], hits_raw: str, gaps: list[Gap]) -> str:
    if ("", hit_id) in books.letters:
        return "dead"
    # A record that was rekeyed is there twice; the copy may be the one that expired.
    return EXPIRED if any(_is_in(place, hits_raw, gaps) for place in places) else "lost"


def _is_in(place: Place, topic: str, gaps: Iterable[Gap]) -> bool:
    return any(
        gap.topic == topic and gap.partition == place.partition and gap.first <= place.offset < gap.end for gap in gaps
    )


def _uncounted(books: Books, topics: Mapping[str, str], gaps: list[Gap]) -> list[str]:
    """Compare the entries of the ledger with the topics: routed, and what became of it."""
    sums: Counter[tuple[str, str]] = Counter()
    for entry in books.entries:
        for counted, count in entry.counts.items():
            sums[counted.connection, counted.outcome] += count
    problems = []
    for connection, topic in topics.items():
        hits = books.places.get(topic, {})
        places = [place for each in hits.values() for place in each]
        routed = sums[connection, "routed"]
        if routed != len(places):
            problems.append(f"{connection}: the ledger routed {routed}, the topic held {len(places)}")
        if connection in books.taken:
            expired = sum(
                _has_expired(books, hit_id, connection, topic, [place], gaps)
                for hit_id, each in hits.items()
                for place in each
            )
            ended = sum(sums[connection, outcome] for outcome in ("delivered", "skipped", "dead")) + expired
            if ended != routed:
                problems.append(f"{connection}: {routed} routed, but {ended} delivered, dead or expired ({expired})")
    return problems
