"""Fair queueing of projects before Kafka: limits what each has in flight, so that no project waits behind the flood of another.

The producer's queue is first in, first out. So each project may have only a limited weight in it, and the rest waits here, in
round-robin order of projects. A project that sends alone may use a large part of the queue, for full throughput. Once another
project sends, all share a much smaller part, until only one has sent for ten minutes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

RECORD_WEIGHT = 1_000
"""Weight of a record in addition to its bytes."""
ALONE_WEIGHT = 40_000_000
SHARED_WEIGHT = 1_000_000
LEAST_SHARED_WEIGHT, MOST_SHARED_WEIGHT = 100_000, 4_000_000
"""Bounds of the weight in flight of all projects together, while several send. It shrinks while Kafka answers late.

A weight beyond Kafka's rate times its latency only lengthens the queue for all projects. Source: additive increase,
multiplicative decrease of TCP (RFC 5681), and TCP Vegas, which also infers the queue from the latency.
"""
_GROWTH_WEIGHT = 50_000
_SHRINK_FACTOR = 0.7
_LATE_FACTOR, _LATE_SECONDS = 2.0, 0.005
"""An acknowledgement is late beyond twice the shortest recent latency plus some milliseconds."""
_DECAY_FACTOR = 1.02
"""Growth of the shortest latency at each acknowledgement, because Kafka may have become slower by itself."""
LEAST_WEIGHT = 50_000
"""Smallest weight of one project, however many send."""
SHARED_SECONDS = 600.0
LONGEST_WAIT_SECONDS = 5.0
PART_RECORDS = 50
"""Records that are queued before the loop reads other connections."""


class Waiting(Protocol):
    """Callback of a waiting request."""

    def __call__(self, is_late: bool) -> int:
        """Resume, or give up if `is_late`; return the number of records put into the queue."""


class Share:
    """What one project has in flight and waiting. Create it with Shares.new."""

    __slots__ = ("shares", "waiting", "weight")

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.weight = 0
        """Weight in flight to Kafka."""
        self.waiting: OrderedDict[Hashable, tuple[float, Waiting]] = OrderedDict()
        """By waiter: the time when it began to wait, and its callback."""

    @property
    def has_room(self) -> bool:
        """Whether the project may put more into the queue."""
        return self.weight < self.shares.most_weight

    @property
    def is_free(self) -> bool:
        """Whether a new request may proceed without waiting."""
        return self.weight < self.shares.most_weight and not self.waiting

    def begin(self, weight: int) -> None:
        """Count `weight` as in flight."""
        self.weight += weight
        if self is not self.shares.latest:
            self.shares.sender_changed(self)

    def end(self, weight: int) -> None:
        """Count `weight` as acknowledged or failed."""
        self.weight -= weight
        if self.shares.waiting:
            self.shares.schedule_resume()

    def wait(self, who: Hashable, resume: Waiting, first: bool = False) -> None:
        """Call `resume` once there is room, in order of arrival; with `first` ahead of all others of the project."""
        self.waiting[who] = self.shares.clock(), resume
        if first:
            self.waiting.move_to_end(who, last=False)
        self.shares.waiting[self] = None
        if self.has_room:
            self.shares.schedule_resume()

    def cancel(self, who: Hashable) -> None:
        """Remove a waiter."""
        self.waiting.pop(who, None)
        if not self.waiting:
            self.shares.waiting.pop(self, None)


class Shares:
    """The shares of one process. Call from the loop only; `soon` is the loop's call_soon."""

    def __init__(self, clock: Callable[[], float], soon: Callable[[Callable[[], None]], object]) -> None:
        self.clock = clock
        self._soon = soon
        self.most_weight = ALONE_WEIGHT
        """The current limit of one project."""
        self.waiting: dict[Share, None] = {}
        """Shares with waiters, the next in turn first."""
        self.latest: Share | None = None
        """The share that put records into the queue last."""
        self._active: set[Share] = set()
        self._active_before: set[Share] = set()
        self._shared_until = 0.0
        self._shared_weight = SHARED_WEIGHT
        self._quickest_seconds = math.inf
        self._shrunk_at = 0.0
        self._is_due = False

    def new(self) -> Share:
        """Return the share of a new project."""
        return Share(self)

    def sender_changed(self, share: Share) -> None:
        """Note that another share than the latest sends now."""
        if self.latest is not None:
            self._shared_until = self.clock() + SHARED_SECONDS
        self.latest = share
        if share not in self._active:
            self._active.add(share)
            self._divide()

    def adjust(self, began: float) -> None:
        """Adapt the shared weight to the latency of a part of a batch that was queued at `began`."""
        now = self.clock()
        seconds = now - began
        self._quickest_seconds = quickest = min(seconds, self._quickest_seconds * _DECAY_FACTOR)
        if seconds > _LATE_FACTOR * quickest + _LATE_SECONDS:
            if began > self._shrunk_at:  # parts queued before the shrink are late anyway
                self._shrunk_at = now
                self._shared_weight = max(LEAST_SHARED_WEIGHT, int(self._shared_weight * _SHRINK_FACTOR))
        elif self.waiting:
            self._shared_weight = min(MOST_SHARED_WEIGHT, self._shared_weight + _GROWTH_WEIGHT)
        self._divide()

    def sweep(self, now: float) -> None:
        """Count the sending projects, and expire waiters; called about twice a second."""
        self._active_before = self._active
        self._active = set() if self.latest is None else {self.latest}
        if self._shared_until < now:
            self._shared_until = 0.0
        self._divide()
        for share in list(self.waiting):
            for who, (since, resume) in list(share.waiting.items()):
                if now > since + LONGEST_WAIT_SECONDS and who in share.waiting:
                    share.cancel(who)
                    resume(True)
        if self.waiting:
            self.schedule_resume()

    def schedule_resume(self) -> None:
        """Resume waiters in the loop's next iteration, as far as there is room."""
        if not self._is_due:
            self._is_due = True
            self._soon(self._resume_waiting)

    def _resume_waiting(self) -> None:
        """Resume one waiter of each project in turn."""
        self._is_due = False
        records = 0
        while records < PART_RECORDS:
            share = next((share for share in self.waiting if share.has_room), None)
            if share is None:
                return
            who, (_, resume) = next(iter(share.waiting.items()))
            share.cancel(who)
            if share.waiting:  # the project goes to the end of the round
                self.waiting[share] = self.waiting.pop(share)
            records += max(1, resume(False))
        self.schedule_resume()

    def _divide(self) -> None:
        if not self._shared_until:
            self.most_weight = ALONE_WEIGHT
            return
        projects = len(self._active | self._active_before)
        self.most_weight = max(LEAST_WEIGHT, self._shared_weight // max(1, projects))
