"""The state of a batch in delivery: lanes of requests that are still to be sent, and the outcomes so far."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pipeline.delivery.refusals import FinalOutcome, Settled

Item = TypeVar("Item")
"""The unit that a sink sends: an event of a request or a row of a table."""
Chunk = list[int]
"""The positions of the items of one request."""
Lane = list[Chunk]
"""Chunks that are sent one after the other."""


class Guard(Protocol):
    """Checks whether a batch may still be sent; see BatchGuard of the transport."""

    def raise_if_stale(self) -> None:
        """Raise StaleBatch if nothing more of the batch may be sent."""

    async def verify(self) -> None:
        """Return once a commit of its outcomes can be expected to succeed. Raises StaleBatch if not."""


@dataclass(slots=True)
class LaneState:
    """The unsent chunks of a lane. After `failures` consecutive failures, it pauses until `not_before` on the clock."""

    chunks: deque[Chunk]
    failures: int = 0
    not_before: float = 0.0


@dataclass(slots=True)
class BatchState(Generic[Item]):
    """Items that are delivered together. `outcomes` holds the final ones so far, `lanes` the positions of all other items.

    `refused` holds the unsettled positions that the destination has answered Misconfigured, the oldest answer first.
    `refused_in_pause` holds those of every request that it answered so while the connection was misconfigured.
    """

    items: Sequence[Item | Settled]
    outcomes: dict[int, FinalOutcome]
    guard: Guard
    lanes: list[LaneState]
    refused: dict[int, None] = field(default_factory=dict)
    refused_in_pause: set[int] = field(default_factory=set)
    refused_alone: Counter[int] = field(default_factory=Counter)
    """How often each position was refused alone."""
    token: object = field(default_factory=object)
    """Identifies this batch in `Refusals`, without keeping its items in memory."""

    def first_not_in(self, positions: Container[int]) -> int | None:
        """Return the first unsent position that is not in `positions`."""
        return next((p for lane in self.lanes for chunk in lane.chunks for p in chunk if p not in positions), None)

    def mark_refused(self, positions: Iterable[int]) -> None:
        """Note that the destination has answered Misconfigured for `positions` just now."""
        for position in positions:
            self.refused.pop(position, None)
            self.refused[position] = None

    def remove(self, positions: Collection[int]) -> None:
        """Remove `positions`, which have an outcome, from the lanes."""
        for position in positions:
            self.refused.pop(position, None)
        for lane in self.lanes:
            rest = [[position for position in chunk if position not in positions] for chunk in lane.chunks]
            lane.chunks = deque(chunk for chunk in rest if chunk)


def halves(chunk: Chunk) -> tuple[Chunk, Chunk]:
    """Split `chunk`, and return the second half first, as `extendleft` expects."""
    half = len(chunk) // 2
    return chunk[half:], chunk[:half]
