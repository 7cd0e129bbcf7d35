"""The consumer group members of this process, as /readyz shows them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from enum import Enum, auto

from pipeline.telemetry.progress import STALL_SECONDS, Progress
from pipeline.telemetry.readiness import Condition, State


class Phase(Enum):
    """The place of a member in its group.

    JOINING -> REBUILDING (partitions are assigned, their state is read) -> JOINED -> JOINING (revoked, or left).
    """

    JOINING = auto()
    REBUILDING = auto()
    JOINED = auto()


class Member:
    """One consumer group member: its phase, and whether its batches make progress.

    Any thread may call; `now` is a reading of time.monotonic().
    """

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self._phase, self._since = Phase.JOINING, now
        self._partitions = 0
        self._sending_since: float | None = None
        self._progress = Progress()

    def rebuilding(self, partitions: int, now: float) -> None:
        """The group has assigned `partitions`; their state is read before their first record."""
        self._partitions = partitions
        self._enter(Phase.REBUILDING, now)

    def joined(self, now: float) -> None:
        """The assigned partitions are being read; there may be none."""
        self._enter(Phase.JOINED, now)

    def joining(self, now: float) -> None:
        """Nothing is assigned: before the first assignment, between two, and after leaving."""
        self._partitions = 0
        self._enter(Phase.JOINING, now)

    def sending(self, now: float) -> None:
        """A batch is with the destination, which may take its time; see `sent`."""
        self._sending_since = now

    def sent(self) -> None:
        """The destination has answered for each hit of the batch."""
        self._sending_since = None
        self._progress.reset()

    def observe(self, waiting: bool, committed_at: float | None, now: float) -> None:
        """Note whether records wait now, and when a batch was committed last. A batch with the destination does not count."""
        waiting = waiting and self._phase is Phase.JOINED and self._sending_since is None
        self._progress.observe(waiting, committed_at, now)

    def conditions(self, now: float) -> Iterator[Condition]:
        """The member's lines of /readyz."""
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
    """The members that this process is to have, by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}

    def want(self, names: Iterable[str], now: float) -> None:
        """From now on these are the members: new ones are joining, those not named are forgotten."""
        with self._lock:
            before = self._members
            self._members = {name: before.get(name) or Member(name, now) for name in names}

    def get(self, name: str, now: float) -> Member:
        """The member of this name; made when there is none."""
        with self._lock:
            return self._members.setdefault(name, Member(name, now))

    def conditions(self, now: float) -> Iterator[Condition]:
        """The lines of all members."""
        with self._lock:
            members = list(self._members.values())
        for member in members:
            yield from member.conditions(now)
