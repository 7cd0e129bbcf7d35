"""Tracks the consumer group members of this process for /readyz."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from enum import Enum, auto

from pipeline.telemetry.progress import STALL_SECONDS, Progress
from pipeline.telemetry.readiness import Condition, State


class Phase(Enum):
    """The phase of a member in its group.

    JOINING -> REBUILDING (partitions are assigned, their state is being read) -> JOINED -> JOINING (revoked or left).
    """

    JOINING = auto()
    REBUILDING = auto()
    JOINED = auto()


class Member:
    """One consumer group member: its phase, and whether its batches make progress.

    Any thread can call its methods; `now` is a reading of time.monotonic().
    """

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self._phase, self._since = Phase.JOINING, now
        self._partitions = 0
        self._sending_since: float | None = None
        self._progress = Progress()

    def rebuilding(self, partitions: int, now: float) -> None:
        """Enter REBUILDING: the group assigned so many `partitions`, whose state is read before their first record."""
        self._partitions = partitions
        self._enter(Phase.REBUILDING, now)

    def joined(self, now: float) -> None:
        """Enter JOINED: the assigned partitions are being read; their number can be 0."""
        self._enter(Phase.JOINED, now)

    def joining(self, now: float) -> None:
        """Enter JOINING: nothing is assigned, before the first assignment, between two, or after leaving."""
        self._partitions = 0
        self._enter(Phase.JOINING, now)

    def sending(self, now: float) -> None:
        """Record that a batch is being sent to the destination. Until `sent`, it does not count as stalled."""
        self._sending_since = now

    def sent(self) -> None:
        """Record that the destination has answered for each hit of the batch."""
        self._sending_since = None
        self._progress.reset()

    def observe(self, waiting: bool, committed_at: float | None, now: float) -> None:
        """Record whether records are waiting, and when the last batch was committed. A batch being sent does not count."""
        waiting = waiting and self._phase is Phase.JOINED and self._sending_since is None
        self._progress.observe(waiting, committed_at, now)

    def conditions(self, now: float) -> Iterator[Condition]:
        """Yield the member's lines of /readyz."""
        if self._phase is Phase.JOINING:
            yield Condition(self.name, State.JOINING, "it has no assignment from its consumer group yet", self._since)
        elif self._phase is Phase.REBUILDING:
            reason = f"the state of {self._partitions} partitions is being read"
            yield Condition(self.name, State.REBUILDING, reason, self._since)
        elif not self._partitions:
            reason = "no partition is assigned, the group has more workers than partitions"
            yield Condition(self.name, State.IDLE, reason, self._since)
        stalled_since = self._progress.stalled_since(now)
        if stalled_since is not None:
            yield Condition(self.name, State.STALLED, "records wait, but no batch was committed", stalled_since)
        sending_since = self._sending_since
        if sending_since is not None and now - sending_since >= STALL_SECONDS:
            yield Condition(self.name, State.SENDING, "one batch is with the destination", sending_since)

    def _enter(self, phase: Phase, now: float) -> None:
        if phase is not self._phase:
            self._phase, self._since = phase, now
        self._progress.reset()


class Members:
    """The members that this process should have, by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}

    def want(self, names: Iterable[str], now: float) -> None:
        """Set the members: new ones are joining, others are removed."""
        with self._lock:
            before = self._members
            self._members = {name: before.get(name) or Member(name, now) for name in names}

    def get(self, name: str, now: float) -> Member:
        """Return the member of this name; create it if it does not exist."""
        with self._lock:
            return self._members.setdefault(name, Member(name, now))

    def conditions(self, now: float) -> Iterator[Condition]:
        """Yield the lines of all members."""
        with self._lock:
            members = list(self._members.values())
        for member in members:
            yield from member.conditions(now)
