"""Judges every hit by comparing what was sent with what the topics hold. Pure: no Kafka, no clock.

A marker, a text inside `event`, identifies a hit independently of keys and ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Sent:
    """One hit: `value` as sent, the connections that must get it, and whether it was acknowledged as stored."""

    marker: str
    value: bytes
    project: str
    connections: frozenset[str]
    stored: bool = False
    dead: bool = False
    """Whether the hit is invalid: the dead letters must then hold it, once for each time that it was stored."""
    copies: int = 1


@dataclass(slots=True)
class Found:
    """Content of the topics for read_committed readers: values by connection, dead letters, and the ledger's sums."""

    deliveries: Mapping[str, list[bytes]]
    dead: list[bytes]
    ledger_routed: Mapping[str, int]
    ledger_dead: int
    ledger_problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """Markers by kind of error. The guarantee held if all lists are empty."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    ghost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    misrouted: list[str] = field(default_factory=list)
    unaccounted: list[str] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """Names of the lists that are not empty."""
        return [name for name in self.__slots__ if getattr(self, name)]  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return ", ".join(f"{len(getattr(self, name))} {name}" for name in self.__slots__)  # type: ignore[attr-defined]


def check(sent: Iterable[Sent], found: Found) -> Verdict:
    """Return the verdict on the hits that were sent."""
    verdict = Verdict()
    by_marker = {hit.marker: hit for hit in sent}
    for connection, values in found.deliveries.items():
        times: Counter[str] = Counter()
        for value in values:
            marker = _judge(verdict, connection, value, by_marker)
            if marker is not None:
                times[marker] += 1
        verdict.doubled += [f"{connection}: {marker}" for marker, count in times.items() if count > 1]
        verdict.lost += [
            f"{connection}: {hit.marker}"
            for hit in by_marker.values()
            if hit.stored and not hit.dead and connection in hit.connections and not times[hit.marker]
        ]
        routed = found.ledger_routed.get(connection, 0)
        if routed != len(values):
            verdict.unaccounted.append(f"{connection}: the ledger has {routed}, the topic {len(values)}")
    _check_dead(verdict, by_marker.values(), found)
    verdict.unaccounted += found.ledger_problems
    return verdict


def _judge(verdict: Verdict, connection: str, value: bytes, sent: Mapping[str, Sent]) -> str | None:
    try:
        routed = json.loads(value)
        marker = str(routed["event"]["marker"])
    except (ValueError, KeyError, TypeError):
        verdict.corrupt.append(f"{connection}: {value[:80]!r}")
        return None
    hit = sent.get(marker)
    if hit is None:
        verdict.ghost.append(f"{connection}: {marker}")
        return None
    original = json.loads(hit.value)
    same = (
        routed["event"] == original["event"]
        and routed["projectId"] == hit.project
        and routed.get("integrations") == original.get("integrations")
        and ("hitId" not in original or routed["hitId"] == original["hitId"])
    )
    if not same:
        verdict.corrupt.append(f"{connection}: {marker}")
    if connection not in hit.connections:
        verdict.misrouted.append(f"{connection}: {marker}")
    return marker


def _check_dead(verdict: Verdict, sent: Iterable[Sent], found: Found) -> None:
    letters = Counter(found.dead)
    if found.ledger_dead != len(found.dead):
        verdict.unaccounted.append(f"dead: the ledger has {found.ledger_dead}, the topic {len(found.dead)}")
    for hit in sent:
        count = letters.pop(hit.value, 0)
        if not hit.dead:
            if count:
                verdict.misrouted.append(f"dead letters: {hit.marker}")
        elif hit.stored and count < hit.copies:
            verdict.lost.append(f"dead letters: {hit.marker}")
        elif count > hit.copies:
            verdict.doubled.append(f"dead letters: {hit.marker}")
    verdict.ghost += [f"dead letters: {value[:80]!r}" for value in letters]
