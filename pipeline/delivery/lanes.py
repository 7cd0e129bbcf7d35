"""What is left to send of a batch: lanes of requests, and what the destination has answered so far."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pipeline.delivery.refusals import FinalOutcome, Settled

Item = TypeVar("Item")
"""What the sink sends: an event of a request, a row of a table."""
Chunk = list[int]
"""Positions of the items that go together."""
Lane = list[Chunk]
"""Chunks that go one after the other."""


class Guard(Protocol):
    """What must hold before anything more of a batch is sent; see BatchGuard of the transport."""

    def raise_if_stale(self) -> None:
        """Raise StaleBatch when nothing more of the batch may be sent."""

    async def verify(self) -> None:
        """Return once its outcomes can be expected to be committed. Raises StaleBatch."""


@dataclass(slots=True)
class Line:
    """What is left of a lane. After `failures` in a row of its own it waits until `not_before`, on the clock."""

    chunks: deque[Chunk]
    failures: int = 0
    not_before: float = 0.0


@dataclass(slots=True)
class BatchAtWork(Generic[Item]):
    """What is delivered together; `outcomes` are the final ones so far, `lines` hold the positions of the others.

    `forbidden` are the positions that the destination itself has answered Misconfigured, the longest ago first; `doubtful`
    are those of all requests that it answered so while the connection was misconfigured.
    """

    items: Sequence[Item | Settled]
    outcomes: dict[int, FinalOutcome]
    guard: Guard
    lines: list[Line]
    forbidden: dict[int, None] = field(default_factory=dict)
    doubtful: set[int] = field(default_factory=set)
    refused_alone: Counter[int] = field(default_factory=Counter)
    """By position how often it stood alone."""
    token: object = field(default_factory=object)
    """Stands for this batch in `Refusals`, without keeping its items in memory."""

    def first_outside(self, positions: Container[int]) -> int | None:
        """Return the first position that is left and not among `positions`."""
        return next((p for line in self.lines for chunk in line.chunks for p in chunk if p not in positions), None)

    def note_forbidden(self, positions: Iterable[int]) -> None:
        """The destination has answered Misconfigured for these now."""
        for position in positions:
            self.forbidden.pop(position, None)
            self.forbidden[position] = None

    def take_out(self, positions: Collection[int]) -> None:
        """Remove what has an outcome."""
        for position in positions:
            self.forbidden.pop(position, None)
        for line in self.lines:
            rest = [[position for position in chunk if position not in positions] for chunk in line.chunks]
            line.chunks = deque(chunk for chunk in rest if chunk)


def halves(chunk: Chunk) -> tuple[Chunk, Chunk]:
    """The second half first, as `extendleft` takes them."""
    half = len(chunk) // 2
    return chunk[half:], chunk[:half]
