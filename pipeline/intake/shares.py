"""A share of the intake for each project: how much may be under way to Kafka, so that none waits behind the flood of another.

A record waits in the producer's queue behind all that were put there before. So what one project has there is bounded, and the
rest waits here, in turn with that of other projects. While only one project sends, it may fill a part of the queue that costs no
throughput. Once another has sent, all share a much smaller part until only one has sent for ten minutes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

RECORD_WEIGHT = 1_000
"""A record weighs as much as so many bytes, and its bytes."""
ALONE_WEIGHT = 40_000_000
SHARED_WEIGHT = 1_000_000
LEAST_SHARED_WEIGHT, MOST_SHARED_WEIGHT = 100_000, 4_000_000
"""What is under way of all projects together, while several send. It shrinks while Kafka answers late, and grows again.

What goes beyond the rate of Kafka times its latency only makes a queue, before every other project's hits. Source: additive increase,
multiplicative decrease of TCP (RFC 5681), and its Vegas, which also reads the queue from the latency.
"""
_GROWTH_WEIGHT = 50_000
_SHRINK_FACTOR = 0.7
_LATE_FACTOR, _LATE_SECONDS = 2.0, 0.005
"""An answer is late that takes twice as long as the quickest of late, and some milliseconds."""
_FORGET_FACTOR = 1.02
"""The quickest grows so much at each answer: Kafka may have become slower by itself."""
LEAST_WEIGHT = 50_000
"""Of one project, however many send."""
SHARED_SECONDS = 600.0
LONGEST_WAIT_SECONDS = 5.0
PART_RECORDS = 50
"""So many go into the queue before other connections are read."""


class Waiting(Protocol):
    """What waits for room."""

    def __call__(self, is_late: bool) -> int:
        """Go on, or give up where `is_late`; return how many records went into the queue."""


class Share:
    """What one project has under way and waiting. Make it with Shares.new."""

    __slots__ = ("shares", "waiting", "weight")

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.weight = 0
        """Under way to Kafka."""
        self.waiting: OrderedDict[Hashable, tuple[float, Waiting]] = OrderedDict()
        """Since when, and what to call."""

    @property
    def has_room(self) -> bool:
        """May more go into the queue?"""
        return self.weight < self.shares.most_weight

    @property
    def is_free(self) -> bool:
        """May a new request go on at once?"""
        return self.weight < self.shares.most_weight and not self.waiting

    def begin(self, weight: int) -> None:
        """So much goes into the queue now."""
        self.weight += weight
        if self is not self.shares.latest:
            self.shares.another_sends(self)

    def end(self, weight: int) -> None:
        """Kafka has answered for so much."""
        self.weight -= weight
        if self.shares.waiting:
            self.shares.go_on_soon()

    def wait(self, who: Hashable, go_on: Waiting, first: bool = False) -> None:
        """Call `go_on` once there is room, in the order of waiting; with `first` before all others of the project."""
        self.waiting[who] = self.shares.clock(), go_on
        if first:
            self.waiting.move_to_end(who, last=False)
        self.shares.waiting[self] = None
        if self.has_room:
            self.shares.go_on_soon()

    def forget(self, who: Hashable) -> None:
        """It waits no longer."""
        self.waiting.pop(who, None)
        if not self.waiting:
            self.shares.waiting.pop(self, None)


class Shares:
    """All shares of one process. Call from the loop only; `soon` is the loop's call_soon."""

    def __init__(self, clock: Callable[[], float], soon: Callable[[Callable[[], None]], object]) -> None:
        self.clock = clock
        self._soon = soon
        self.most_weight = ALONE_WEIGHT
        """Of one project at this moment."""
        self.waiting: dict[Share, None] = {}
        """Those of which something waits, the next in turn first."""
        self.latest: Share | None = None
        """Whose records went into the queue last."""
        self._active: set[Share] = set()
        self._active_before: set[Share] = set()
        self._shared_until = 0.0
        self._shared_weight = SHARED_WEIGHT
        self._quickest_seconds = math.inf
        self._shrunk_at = 0.0
        self._is_due = False

    def new(self) -> Share:
        """Return the share of another project."""
        return Share(self)

    def another_sends(self, share: Share) -> None:
        """It is not the one that sent last."""
        if self.latest is not None:
            self._shared_until = self.clock() + SHARED_SECONDS
        self.latest = share
        if share not in self._active:
            self._active.add(share)
            self._divide()

    def adjust(self, began: float) -> None:
        """Kafka has answered for a part of a batch that went into the queue at `began`."""
        now = self.clock()
        seconds = now - began
        self._quickest_seconds = quickest = min(seconds, self._quickest_seconds * _FORGET_FACTOR)
        if seconds > _LATE_FACTOR * quickest + _LATE_SECONDS:
            if began > self._shrunk_at:  # what was in the queue before is late all the same
                self._shrunk_at = now
                self._shared_weight = max(LEAST_SHARED_WEIGHT, int(self._shared_weight * _SHRINK_FACTOR))
        elif self.waiting:
            self._shared_weight = min(MOST_SHARED_WEIGHT, self._shared_weight + _GROWTH_WEIGHT)
        self._divide()

    def sweep(self, now: float) -> None:
        """Count the projects that send, and give up what has waited for too long; called about twice a second."""
        self._active_before = self._active
        self._active = set() if self.latest is None else {self.latest}
        if self._shared_until < now:
            self._shared_until = 0.0
        self._divide()
        for share in list(self.waiting):
            for who, (since, go_on) in list(share.waiting.items()):
                if now > since + LONGEST_WAIT_SECONDS and who in share.waiting:
                    share.forget(who)
                    go_on(True)
        if self.waiting:
            self.go_on_soon()

    def go_on_soon(self) -> None:
        """Let what waits go on in the loop's next turn, as far as there is room."""
        if not self._is_due:
            self._is_due = True
            self._soon(self._go_on)

    def _go_on(self) -> None:
        """One of each project in turn."""
        self._is_due = False
        records = 0
        while records < PART_RECORDS:
            share = next((share for share in self.waiting if share.has_room), None)
            if share is None:
                return
            who, (_, go_on) = next(iter(share.waiting.items()))
            share.forget(who)
            if share.waiting:  # behind the other projects
                self.waiting[share] = self.waiting.pop(share)
            records += max(1, go_on(False))
        self.go_on_soon()

    def _divide(self) -> None:
        if not self._shared_until:
            self.most_weight = ALONE_WEIGHT
            return
        projects = len(self._active | self._active_before)
        self.most_weight = max(LEAST_WEIGHT, self._shared_weight // max(1, projects))
