"""Joins hits of hits-raw with the records that the router writes for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_WAIT_SECONDS = 15.0
"""A hit without a record of the router for this long is reported as not routed."""
_GRACE_SECONDS = 3.0
"""Wait after the commit: records of one transaction are in several partitions, so they are read at different times."""
MAX_WAITING = 1_000
"""Limit of hits that wait for records of the router, and of such records that wait for their hit."""

RawPosition = tuple[int, int]
"""Partition and offset in hits-raw."""


@dataclass(frozen=True, slots=True)
class RoutingResult:
    """One hit and where it was routed, such as `to archive, crm`. Texts of the sender are not escaped."""

    at: str
    project: str
    event: str
    hit_id: str
    text: str


@dataclass(slots=True)
class _Waiting:
    at: str
    project: str
    event: str
    hit_id: str
    is_public: bool
    expected: frozenset[str]
    since: float
    delivered_to: list[str] = field(default_factory=list)
    dead_letter: str = ""
    routed_at: float | None = None

    @property
    def key(self) -> tuple[str, bool, str]:
        return self.project, self.is_public, self.hit_id


class HitJoin:
    """Joins hits with the router's records, which are read in any order. Pure; its memory is bounded by MAX_WAITING.

    `now` is a reading of a monotonic clock.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[RawPosition, _Waiting] = OrderedDict()
        self._early: OrderedDict[tuple[str, bool, str], list[str]] = OrderedDict()
        """Connections by project, door and hitId, for hits that were not read yet."""
        self._early_dead: OrderedDict[RawPosition, str] = OrderedDict()
        self._next_offsets: dict[int, int] = {}
        self.omitted = 0
        """Number of hits that arrived while MAX_WAITING others were waiting."""

    def add_hit(
        self,
        position: RawPosition,
        at: str,
        project: str,
        event: str,
        hit_id: str,
        expected: frozenset[str],
        now: float,
        is_public: bool = False,
    ) -> None:
        """Add a hit. `expected` are the connections that the configuration selects for it.

        Hits of public and secret doors with the same hitId are different hits.
        """
        delivered_to = self._early.pop((project, is_public, hit_id), [])
        dead_letter = self._early_dead.pop(position, "")
        if len(self._waiting) >= MAX_WAITING:
            self.omitted += 1
            return
        self._waiting[position] = _Waiting(
            at, project, event, hit_id, is_public, expected, now, delivered_to, dead_letter
        )

    def add_delivery(self, connection: str, project: str, hit_id: str, is_public: bool = False) -> None:
        """Add a record of a hit on the topic of `connection`."""
        for waiting in self._waiting.values():
            if waiting.key == (project, is_public, hit_id) and connection not in waiting.delivered_to:
                waiting.delivered_to.append(connection)
                return
        early = self._early.setdefault((project, is_public, hit_id), [])
        if connection not in early:
            early.append(connection)
        if len(self._early) > MAX_WAITING:
            self._early.popitem(last=False)

    def add_dead_letter(self, position: RawPosition, connection: str, why: str) -> None:
        """Add a dead letter that the router wrote for the record at `position`."""
        text = f"a dead letter{f' of {connection}' if connection else ''}: {why}"
        waiting = self._waiting.get(position)
        if waiting is not None:
            waiting.dead_letter = text
            return
        self._early_dead[position] = text
        if len(self._early_dead) > MAX_WAITING:
            self._early_dead.popitem(last=False)

    def set_routed(self, partition: int, next_offset: int) -> None:
        """Record that the router has committed all offsets of `partition` below `next_offset`."""
        self._next_offsets[partition] = max(next_offset, self._next_offsets.get(partition, 0))

    def take_results(self, now: float) -> Iterator[RoutingResult]:
        """Yield and remove the hits whose result is known, in the order of their arrival."""
        for position, waiting in list(self._waiting.items()):
            if waiting.routed_at is None and position[1] < self._next_offsets.get(position[0], 0):
                waiting.routed_at = now
            text = _result_text(waiting, now)
            if text:
                del self._waiting[position]
                yield RoutingResult(waiting.at, waiting.project, waiting.event, waiting.hit_id, text)


def _result_text(waiting: _Waiting, now: float) -> str:
    """Return the result of a hit, or "" while it is unknown."""
    to = f"to {', '.join(sorted(waiting.delivered_to))}" if waiting.delivered_to else ""
    if waiting.expected and waiting.expected <= set(waiting.delivered_to):
        return to
    if waiting.routed_at is not None and now >= waiting.routed_at + _GRACE_SECONDS:
        if to or waiting.dead_letter:
            return " and ".join(filter(None, (to, waiting.dead_letter)))
        return "a duplicate, not routed again" if waiting.expected else "to no connection"
    if now >= waiting.since + MAX_WAIT_SECONDS:
        return f"not routed within {MAX_WAIT_SECONDS:.0f} s; check that the router is running"
    return ""
