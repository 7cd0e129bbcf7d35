"""The assignment of one consumer: its partitions, where their next transaction starts, and which batches are valid.

Each rebalance, abort and failure replaces the assignment. A batch refers to the assignment under which it was read, and is
stale once another one is the current one. README.md of this package shows the phases.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from faust.types import TP

from pipeline.kafka.slot_state import IllegalTransition


class Phase(Enum):
    """What a consumer may do with its partitions."""

    RELEASED = "released"
    """No partition is assigned."""
    READING = "reading"
    """Batches are read and processed."""
    LEAVING = "leaving"
    """The partitions are being revoked, or the worker stops. No new work starts; work in flight can still commit."""
    LEFT = "left"
    """All batches are stale. The open transaction may not have ended yet."""
    UNKNOWN = "unknown"
    """The outcome of a transaction is unknown, so the state in memory may be wrong. The consumer must rejoin its group. Leaving
    does not end this phase; only a release or a new assignment does."""


LEGAL: Mapping[Phase, frozenset[Phase]] = {
    Phase.RELEASED: frozenset({Phase.RELEASED, Phase.READING, Phase.LEAVING, Phase.LEFT}),
    Phase.READING: frozenset({Phase.READING, Phase.LEAVING, Phase.LEFT, Phase.UNKNOWN}),
    Phase.LEAVING: frozenset({Phase.LEAVING, Phase.LEFT, Phase.UNKNOWN, Phase.READING}),
    Phase.LEFT: frozenset({Phase.LEFT, Phase.RELEASED, Phase.UNKNOWN, Phase.READING}),
    Phase.UNKNOWN: frozenset({Phase.UNKNOWN, Phase.RELEASED, Phase.READING}),
}
"""Partitions are released only after they were left, so never during an open transaction. A stop may run at the same time as a
rebalance: it may find the partitions released or assigned when its wait ends, so an assignment may follow any phase, and LEFT
may follow RELEASED."""


class Assignment:
    """What one consumer has between two changes. Compared by identity.

    Only the loop changes it, with one exception: the poll thread clears and sets `must_rewind`. It reads the current assignment
    once per poll, and a replacement during that poll makes its batch stale.
    """

    __slots__ = ("in_flight", "leave_until", "must_rewind", "number", "offsets", "phase")

    def __init__(self, number: int = 0, phase: Phase = Phase.RELEASED, offsets: Mapping[TP, int] | None = None) -> None:
        self.number = number
        """Greater than the number of each earlier assignment."""
        self.phase = phase
        self.offsets: dict[TP, int] = dict(offsets or {})
        """The committed next offset of each partition."""
        self.must_rewind = False
        """The Consumer is not at `offsets`, and must be moved there before its next read."""
        self.in_flight = 0
        """Number of batches that were handed to the agent and are not committed."""
        self.leave_until: float | None = None
        """When LEAVING ends or has ended at the latest, by the committer's clock; set until the next assignment."""

    def leave(self, until: float) -> None:
        """Start no more work; batches in flight stay valid."""
        if self.phase is not Phase.UNKNOWN:
            _check(self.phase, Phase.LEAVING)
            self.phase = Phase.LEAVING
        self.leave_until = until

    def replaced(self, phase: Phase, offsets: Mapping[TP, int] | None = None, must_rewind: bool = False) -> Assignment:
        """Return the assignment that follows. Raises IllegalTransition.

        Without `offsets` it has those of this one, and must be rewound if this one must.
        """
        _check(self.phase, phase)
        following = Assignment(self.number + 1, phase, self.offsets if offsets is None else offsets)
        following.must_rewind = must_rewind or (offsets is None and self.must_rewind)
        if phase is not Phase.READING:
            following.leave_until = self.leave_until
        return following


def _check(now: Phase, wanted: Phase) -> None:
    if wanted not in LEGAL[now]:
        raise IllegalTransition(f"the assignment is {now.value} and cannot become {wanted.value}")
