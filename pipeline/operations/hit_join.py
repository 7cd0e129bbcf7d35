"""Hits joined with what the router wrote for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

LONGEST_WAIT_SECONDS = 15.0
"""A hit about which the router wrote nothing for this long is told as not routed."""
_GRACE_SECONDS = 3.0
"""Records of one transaction are in several partitions, so they are not read at the same moment."""
MOST_WAITING = 1_000
"""Hits, and records of the router that wait for theirs."""

Place = tuple[int, int]
"""Partition and offset in hits-raw."""


@dataclass(frozen=True, slots=True)
class ToldHit:
    """One hit and its fate, such as `to archive, crm`. Texts are as the sender wrote them."""

    at: str
    project: str
    event: str
    hit_id: str
    fate: str


@dataclass(slots=True)
class _Waiting:
    at: str
    project: str
    event: str
    hit_id: str
    is_public: bool
    wanted: frozenset[str]
    since: float
    got: list[str] = field(default_factory=list)
    fate: str = ""
    routed_at: float | None = None

    @property
    def key(self) -> tuple[str, bool, str]:
        return self.project, self.is_public, self.hit_id


class Join:
    """Joins hits with the router's records, in whatever order they are read. Pure and bounded by MOST_WAITING."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Place, _Waiting] = OrderedDict()
        self._early: OrderedDict[tuple[str, bool, str], list[str]] = OrderedDict()
        """Connections by project, door and hitId, of hits that were not read yet."""
        self._early_dead: OrderedDict[Place, str] = OrderedDict()
        self._next_offsets: dict[int, int] = {}
        self.left_out = 0
        """Hits that came while MOST_WAITING others waited."""

    def hit(
        self,
        place: Place,
        at: str,
        project: str,
        event: str,
        hit_id: str,
        wanted: frozenset[str],
        now: float,
        is_public: bool = False,
    ) -> None:
        """Note that a hit was read; `wanted` are the connections that the configuration chooses for it.

        Hits of public and secret doors with one hitId are two hits.
        """
        got = self._early.pop((project, is_public, hit_id), [])
        fate = self._early_dead.pop(place, "")
        if len(self._waiting) >= MOST_WAITING:
            self.left_out += 1
            return
        self._waiting[place] = _Waiting(at, project, event, hit_id, is_public, wanted, now, got, fate)

    def delivered(self, connection: str, project: str, hit_id: str, is_public: bool = False) -> None:
        """Note that the topic of `connection` has a hit."""
        for waiting in self._waiting.values():
            if waiting.key == (project, is_public, hit_id) and connection not in waiting.got:
                waiting.got.append(connection)
                return
        early = self._early.setdefault((project, is_public, hit_id), [])
        if connection not in early:
            early.append(connection)
        if len(self._early) > MOST_WAITING:
            self._early.popitem(last=False)

    def dead(self, place: Place, connection: str, why: str) -> None:
        """Note that the router wrote a dead letter for the record at `place`."""
        fate = f"a dead letter{f' of {connection}' if connection else ''}: {why}"
        waiting = self._waiting.get(place)
        if waiting is not None:
            waiting.fate = fate
            return
        self._early_dead[place] = fate
        if len(self._early_dead) > MOST_WAITING:
            self._early_dead.popitem(last=False)

    def routed(self, partition: int, next_offset: int) -> None:
        """Note that the router has committed everything below `next_offset`."""
        self._next_offsets[partition] = max(next_offset, self._next_offsets.get(partition, 0))

    def told(self, now: float) -> Iterator[ToldHit]:
        """Yield the hits whose fate is known now, in the order in which they came."""
        for place, waiting in list(self._waiting.items()):
            if waiting.routed_at is None and place[1] < self._next_offsets.get(place[0], 0):
                waiting.routed_at = now
            fate = _fate(waiting, now)
            if fate:
                del self._waiting[place]
                yield ToldHit(waiting.at, waiting.project, waiting.event, waiting.hit_id, fate)


def _fate(waiting: _Waiting, now: float) -> str:
    to = f"to {', '.join(sorted(waiting.got))}" if waiting.got else ""
    if waiting.wanted and waiting.wanted <= set(waiting.got):
        return to
    if waiting.routed_at is not None and now >= waiting.routed_at + _GRACE_SECONDS:
        if to or waiting.fate:
            return " and ".join(filter(None, (to, waiting.fate)))
        return "a duplicate, not routed again" if waiting.wanted else "to no connection"
    if now >= waiting.since + LONGEST_WAIT_SECONDS:
        return f"not routed within {LONGEST_WAIT_SECONDS:.0f} s; does the router run?"
    return ""
