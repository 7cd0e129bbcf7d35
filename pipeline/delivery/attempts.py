"""Trying until every hit has an outcome that lasts: backoff, one probe at a time, halves, giving up (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pipeline.delivery.backoff import LAST_BACKOFF_SECONDS, Backoff
from pipeline.delivery.pace import TICK_SECONDS, Pace
from pipeline.destination import Delivered, Misconfigured, Outcome, Rejected, Retry, Skipped, Verdict
from pipeline.errors import StaleBatch

logger = logging.getLogger("hitrouter.deliver")

Item = TypeVar("Item")
"""What the sink sends: an event of a request, a row of a table."""
Chunk = list[int]
"""Positions of the items that go together."""
Lane = list[Chunk]
"""Chunks that go one after the other."""


FINISH_SECONDS = 4.0
"""How long a batch that is given up waits for its requests in flight, so that their outcomes count. With the time to notice it and
to commit it is shorter than the grace of a rebalance (app.py): outcomes that come later are lost, and their requests repeated."""


class Guard(Protocol):
    """What must hold before anything more of a batch is sent; see BatchGuard of the transport."""

    def raise_if_stale(self) -> None:
        """Raise StaleBatch when nothing more of the batch may be sent."""

    async def verify(self) -> None:
        """Return once its outcomes can be expected to be committed. Raises StaleBatch."""


@dataclass(slots=True)
class _Line:
    """What is left of a lane. After `failures` in a row of its own it waits until `not_before`, on the clock."""

    chunks: deque[Chunk]
    failures: int = 0
    not_before: float = 0.0


@dataclass(slots=True)
class _Batch(Generic[Item]):
    """What is delivered together; `outcomes` are the final ones so far.

    `forbidden` are the positions that the destination itself has answered Misconfigured.
    """

    items: Sequence[Item | Delivered | Skipped | Rejected]
    outcomes: dict[int, Outcome]
    guard: Guard
    forbidden: set[int] = field(default_factory=set)


def _retrieve_error(task: asyncio.Future[None]) -> None:
    """Mark the error of a finished task as retrieved; asyncio prints a traceback for each one that nobody asks for."""
    if not task.cancelled():
        task.exception()


class Attempts(Generic[Item]):
    """Delivers items of one connection. `send` takes the items of one chunk, and never raises for what the sink answers.

    What it raises nevertheless makes this connection try again, and no other: the process, which would end, delivers for all.
    `refused` is asked before each attempt: why an item may not be sent any more.
    """

    def __init__(
        self,
        connection: str,
        send: Callable[[Sequence[Item]], Awaitable[Verdict]],
        max_in_flight: int,
        give_up_after_seconds: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
        per_second: float | None = None,
        longest_backoff_seconds: float = LAST_BACKOFF_SECONDS,
        refused: Callable[[Item], Rejected | None] | None = None,
        give_up_misconfigured_after_seconds: float | None = None,
    ) -> None:
        self._connection = connection
        self._send = send
        self._refused = refused
        self._room = asyncio.Semaphore(max_in_flight)
        self._clock = clock
        self._sleep = sleep
        self._pace = Pace(per_second, clock, sleep)
        self._backoff = Backoff(
            connection, give_up_after_seconds, clock, draw, longest_backoff_seconds, give_up_misconfigured_after_seconds
        )

    async def deliver(
        self,
        items: Sequence[Item | Delivered | Skipped | Rejected],
        lanes: Sequence[Lane],
        guard: Guard,
        age_seconds: Callable[[int], float] = lambda position: math.inf,
    ) -> list[Outcome | None]:
        """One final outcome (Delivered, Rejected, Skipped) per item, in their order.

        `lanes` hold the positions of those that are no outcome yet. Once `guard` finds the batch stale (its partitions are
        gone, or the worker stops) nothing more is sent; requests in flight still count, and items without an outcome are None.

        An item is given up when the connection has failed for the configured time and the item itself has waited as long: so a
        long outage costs no hit more than its own time, and a backlog that meets a short outage costs none. While it is
        misconfigured only those are given up that were answered so themselves.
        """
        outcomes: dict[int, Outcome] = {
            position: item for position, item in enumerate(items) if isinstance(item, Delivered | Skipped | Rejected)
        }
        batch = _Batch(items, outcomes, guard)
        with suppress(StaleBatch):
            await self._deliver(batch, [_Line(deque(lane)) for lane in lanes], age_seconds)
        return [outcomes.get(position) for position in range(len(items))]

    async def _deliver(self, batch: _Batch[Item], waiting: list[_Line], age_seconds: Callable[[int], float]) -> None:
        backoff = self._backoff
        while waiting := [line for line in waiting if line.chunks]:
            batch.guard.raise_if_stale()
            if backoff.waits and (left := backoff.probe_at - self._clock()) > 0:
                # Give up overdue hits now; waiting for the next probe makes more of them overdue.
                if not self._give_up_late(waiting, batch, age_seconds):
                    await self._sleep(min(left, TICK_SECONDS))
                continue
            if backoff.waits:
                await self._send_head(batch, waiting[0])
                # Another lane is the next to probe: what one hit can't pass may be no obstacle for the others.
                waiting.append(waiting.pop(0))
            else:
                await self._drain_all(batch, waiting)

    async def _drain_all(self, batch: _Batch[Item], waiting: Sequence[_Line]) -> None:
        pending = {asyncio.ensure_future(self._drain(batch, line)) for line in waiting}
        for drain in pending:  # each of them may raise StaleBatch; only the first is raised below
            drain.add_done_callback(_retrieve_error)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=TICK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for drain in done:
                    drain.result()
                if pending:  # all drains may be in a slow request, so none would look
                    batch.guard.raise_if_stale()
        except StaleBatch:
            # Each drain ends at its next look at the guard. What is in flight after that ends by itself, and counts no more.
            limit = asyncio.ensure_future(self._sleep(FINISH_SECONDS))
            while pending and not limit.done():
                await asyncio.wait({limit, *pending}, return_when=asyncio.FIRST_COMPLETED)
                pending = {drain for drain in pending if not drain.done()}
            limit.cancel()
            raise

    def _give_up_late(self, waiting: Sequence[_Line], batch: _Batch[Item], age_seconds: Callable[[int], float]) -> bool:
        """Take out of the lanes what has waited too long; was there any?"""
        gave_up = self._backoff.gave_up()
        if gave_up is None:
            return False
        limit, misconfigured = self._backoff.give_up_after_seconds, self._backoff.misconfigured
        late = {
            position
            for line in waiting
            for chunk in line.chunks
            for position in chunk
            # One hit's 403 may be its own fault: those behind it are asked before they are given up.
            if age_seconds(position) >= limit and (not misconfigured or position in batch.forbidden)
        }
        batch.outcomes.update(dict.fromkeys(late, gave_up))
        for line in waiting if late else ():
            rest = [[position for position in chunk if position not in late] for chunk in line.chunks]
            line.chunks = deque(chunk for chunk in rest if chunk)
        return bool(late)

    async def _drain(self, batch: _Batch[Item], line: _Line) -> None:
        """Send until the lane is empty or the connection waits; a failure alone holds up its own lane only."""
        while line.chunks and not self._backoff.waits:
            batch.guard.raise_if_stale()
            if (left := line.not_before - self._clock()) > 0:
                await self._sleep(min(left, TICK_SECONDS))
            else:
                await self._send_head(batch, line)

    async def _send_head(self, batch: _Batch[Item], line: _Line) -> None:
        """One attempt; what is not settled by it stays at the head of the lane."""
        backoff, probing = self._backoff, self._backoff.waits

        def wanted() -> bool:
            batch.guard.raise_if_stale()
            return probing or not backoff.waits

        async with self._room:
            if not await self._pace.turn(len(line.chunks[0]), wanted) or self._refuse_head(batch, line):
                return
            await batch.guard.verify()
            round_ = backoff.round
            failure = await self._attempt(batch, line.chunks)
        if failure is None:
            backoff.succeeded(round_)
            line.failures = 0
        else:
            backoff.failed(failure, round_)
            if not backoff.waits:
                line.failures += 1
                line.not_before = self._clock() + backoff.pause_seconds(line.failures)

    def _refuse_head(self, batch: _Batch[Item], line: _Line) -> bool:
        """Take out of the next chunk what may not be sent any more; is nothing left of it?"""
        if self._refused is None:
            return False
        kept: Chunk = []
        for position in line.chunks[0]:
            why = self._refused(batch.items[position])  # type: ignore[arg-type] # lanes hold no outcomes
            if why is None:
                kept.append(position)
            else:
                batch.outcomes[position] = why
        line.chunks.popleft()
        if kept:
            line.chunks.appendleft(kept)
        return not kept

    async def _attempt(self, batch: _Batch[Item], lane: deque[Chunk]) -> Retry | Misconfigured | None:
        chunk = lane[0]
        try:
            verdict = await self._send([batch.items[position] for position in chunk])  # type: ignore[misc] # no outcomes
        except Exception as error:
            logger.exception("%s failed in a way that nobody foresaw", self._connection)
            verdict = Retry(f"unforeseen_{type(error).__name__}")
        lane.popleft()
        if isinstance(verdict, Rejected) and len(chunk) > 1:
            half = len(chunk) // 2
            lane.extendleft((chunk[half:], chunk[:half]))
            return None
        failure: Retry | Misconfigured | None = None
        unfinished: Chunk = []
        each = [verdict] * len(chunk) if not isinstance(verdict, Sequence) else verdict
        for position, outcome in zip(chunk, each, strict=True):
            if isinstance(outcome, Retry | Misconfigured):
                unfinished.append(position)
                failure = outcome
                if isinstance(outcome, Misconfigured) and outcome.is_answer:
                    batch.forbidden.add(position)
            else:
                batch.outcomes[position] = outcome
        if unfinished:
            lane.appendleft(unfinished)
        if isinstance(failure, Retry) and failure.after_seconds == 0.0 and 0 < len(unfinished) < len(chunk):
            # The destination has named those at fault and took none: without them the others may go at once.
            return None
        return failure
