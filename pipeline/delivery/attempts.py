"""Trying until every hit has an outcome that lasts: backoff, one probe at a time, halves, giving up (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Generic, TypeVar

from pipeline.delivery.backoff import LAST_BACKOFF_SECONDS, Backoff
from pipeline.delivery.pace import TICK_SECONDS, Pace
from pipeline.destination import Misconfigured, Outcome, Rejected, Retry, Skipped, Verdict

Item = TypeVar("Item")
"""What the sink sends: an event of a request, a row of a table."""
Chunk = list[int]
"""Positions of the items that go together."""
Lane = list[Chunk]
"""Chunks that go one after the other."""


class Attempts(Generic[Item]):
    """Delivers items of one connection. `send` takes the items of one chunk, and never raises for what the sink answers.

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
    ) -> None:
        self._send = send
        self._refused = refused
        self._room = asyncio.Semaphore(max_in_flight)
        self._clock = clock
        self._sleep = sleep
        self._pace = Pace(per_second, clock, sleep)
        self._backoff = Backoff(connection, give_up_after_seconds, clock, draw, longest_backoff_seconds)

    async def deliver(
        self,
        items: Sequence[Item | Skipped | Rejected],
        lanes: Sequence[Lane],
        keep_on: Callable[[], None],
        age_seconds: Callable[[int], float] = lambda position: math.inf,
    ) -> list[Outcome]:
        """One final outcome (Delivered, Rejected, Skipped) per item, in their order.

        `lanes` hold the positions of those that are no outcome yet. `keep_on` raises when the batch must be dropped: its
        partitions are gone, or the worker stops. An item is given up when the connection has failed for the configured time
        and the item itself has waited as long: so a long outage costs no hit more than its own time, and a backlog that
        meets a short outage costs none.
        """
        outcomes: dict[int, Outcome] = {
            position: item for position, item in enumerate(items) if isinstance(item, Skipped | Rejected)
        }
        waiting = [deque(lane) for lane in lanes]
        backoff = self._backoff
        while waiting := [lane for lane in waiting if lane]:
            keep_on()
            if backoff.waits and (left := backoff.probe_at - self._clock()) > 0:
                # Late hits go now, for to keep them until the next probe would only make more of them late.
                if not self._give_up_late(waiting, outcomes, age_seconds):
                    await self._sleep(min(left, TICK_SECONDS))
                continue
            if self._refuse(items, waiting, outcomes):
                continue
            probing = backoff.waits
            failure = await self._send_all(items, waiting[:1] if probing else waiting, keep_on, outcomes, once=probing)
            # Another lane is the next to probe: what one hit can't pass may be no obstacle for the others.
            waiting.append(waiting.pop(0))
            if failure is None:
                backoff.succeeded()
            else:
                backoff.failed(failure)
        return [outcomes[position] for position in range(len(items))]

    def _refuse(
        self, items: Sequence[Item | Skipped | Rejected], waiting: Sequence[deque[Chunk]], outcomes: dict[int, Outcome]
    ) -> bool:
        """Take out of the lanes what may not be sent any more; was there any?"""
        if self._refused is None:
            return False
        refused: dict[int, Outcome] = {}
        for position in (position for lane in waiting for chunk in lane for position in chunk):
            why = self._refused(items[position])  # type: ignore[arg-type] # lanes hold no outcomes
            if why is not None:
                refused[position] = why
        outcomes.update(refused)
        if refused:
            _take_out(waiting, refused)
        return bool(refused)

    def _give_up_late(
        self, waiting: Sequence[deque[Chunk]], outcomes: dict[int, Outcome], age_seconds: Callable[[int], float]
    ) -> bool:
        """Take out of the lanes what has waited too long; was there any?"""
        gave_up = self._backoff.gave_up()
        if gave_up is None:
            return False
        limit = self._backoff.give_up_after_seconds
        late = {position for lane in waiting for chunk in lane for position in chunk if age_seconds(position) >= limit}
        outcomes.update(dict.fromkeys(late, gave_up))
        if late:
            _take_out(waiting, late)
        return bool(late)

    async def _send_all(
        self,
        items: Sequence[Item | Skipped | Rejected],
        lanes: Sequence[deque[Chunk]],
        keep_on: Callable[[], None],
        outcomes: dict[int, Outcome],
        once: bool = False,
    ) -> Retry | Misconfigured | None:
        """All lanes side by side, until they are empty (or `once`) or one has failed; the failure.

        What is in flight when `keep_on` raises ends by itself, and in its lane nothing follows.
        """
        failure: Retry | Misconfigured | None = None

        def wanted() -> bool:
            keep_on()
            return failure is None

        async def drain(lane: deque[Chunk]) -> None:
            nonlocal failure
            while lane and failure is None:
                async with self._room:
                    if await self._pace.turn(len(lane[0]), wanted):
                        failed = await self._send_head(items, lane, outcomes)
                        failure = failure or failed
                if once:
                    return

        await asyncio.gather(*map(drain, lanes))
        return failure

    async def _send_head(
        self, items: Sequence[Item | Skipped | Rejected], lane: deque[Chunk], outcomes: dict[int, Outcome]
    ) -> Retry | Misconfigured | None:
        """One attempt; what is not settled by it stays at the head of the lane. Returns the failure."""
        chunk = lane[0]
        verdict = await self._send([items[position] for position in chunk])  # type: ignore[misc] # no outcomes
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
            else:
                outcomes[position] = outcome
        if unfinished:
            lane.appendleft(unfinished)
        return failure


def _take_out(waiting: Sequence[deque[Chunk]], positions: Collection[int]) -> None:
    for lane in waiting:
        rest = [[position for position in chunk if position not in positions] for chunk in lane]
        lane.clear()
        lane.extend(chunk for chunk in rest if chunk)
