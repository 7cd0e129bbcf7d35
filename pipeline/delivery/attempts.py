"""Trying until every hit has an outcome that lasts: backoff, one probe at a time, halves, giving up (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from pipeline.destination import Misconfigured, Outcome, Rejected, Retry, Skipped, Verdict

logger = logging.getLogger("hitrouter.deliver")

FIRST_BACKOFF_SECONDS = 1.0
LAST_BACKOFF_SECONDS = 300.0
_TICK_SECONDS = 0.25

Item = TypeVar("Item")
"""What the sink sends: an event of a request, a row of a table."""
Chunk = list[int]
"""Positions of the items that go together."""


def backoff_seconds(attempt: int, asked: float | None, draw: float) -> float:
    """Full jitter: `draw` (0..1) of 1 s doubled per attempt, at most 5 min; never sooner than the destination asked."""
    jittered = draw * min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(attempt, 16))
    return min(LAST_BACKOFF_SECONDS, max(jittered, asked or 0.0))


class Pace:
    """Lets through at most `per_second` items, one after the other; None lets all through."""

    def __init__(
        self, per_second: float | None, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0

    async def turn(self, items: int) -> None:
        """Wait until `items` may go."""
        if self._per_second is None:
            return
        now = self._clock()
        begin = max(now, self._free_at)
        self._free_at = begin + items / self._per_second
        if begin > now:
            await self._sleep(begin - now)


class Attempts(Generic[Item]):
    """Delivers items of one connection. `send` takes the items of one chunk, and never raises for what the sink answers."""

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
    ) -> None:
        self._connection = connection
        self._send = send
        self._max_in_flight = max_in_flight
        self._give_up_after_seconds = give_up_after_seconds
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._pace = Pace(per_second, clock, sleep)
        self._failing_since: float | None = None
        """Since when nothing succeeds; outlives the batch."""

    async def deliver(
        self,
        items: Sequence[Item | Skipped | Rejected],
        chunks: Sequence[Chunk],
        keep_on: Callable[[], None],
        age_seconds: Callable[[int], float] = lambda position: math.inf,
    ) -> list[Outcome]:
        """One final outcome (Delivered, Rejected, Skipped) per item, in their order.

        `chunks` hold the positions of those that are no outcome yet. `keep_on` raises when the batch must be dropped: its
        partitions are gone, or the worker stops. An item is given up when the connection has failed for the configured time
        and the item itself has waited as long: so a long outage costs no hit more than its own time, and a backlog that
        meets a short outage costs none.
        """
        outcomes: dict[int, Outcome] = {
            position: item for position, item in enumerate(items) if isinstance(item, Skipped | Rejected)
        }
        waiting = list(chunks)
        attempt, probing = 0, self._failing_since is not None
        while waiting:
            keep_on()
            now, later = (waiting[:1], waiting[1:]) if probing else (waiting, [])
            sooner: list[Chunk] = []
            again: list[Chunk] = []
            pause: Retry | Misconfigured | None = None
            for chunk, verdict in zip(now, await self._all_of(items, now), strict=True):
                if isinstance(verdict, Rejected) and len(chunk) > 1:
                    half = len(chunk) // 2
                    sooner += [chunk[:half], chunk[half:]]
                    continue
                each = [verdict] * len(chunk) if not isinstance(verdict, Sequence) else verdict
                unfinished = []
                for position, outcome in zip(chunk, each, strict=True):
                    if isinstance(outcome, Retry | Misconfigured):
                        unfinished.append(position)
                        pause = outcome
                    else:
                        outcomes[position] = outcome
                if unfinished:
                    again.append(unfinished)
            waiting = again + sooner + later
            if pause is None:
                probing, attempt, self._failing_since = False, 0, None
                continue
            probing = True
            if self._failing_since is None:
                self._failing_since = self._clock()
            if isinstance(pause, Retry) and self._clock() - self._failing_since >= self._give_up_after_seconds:
                gave_up = Rejected("gave_up", f"no success within give_up_after; the last: {pause.reason}")
                late = {p for chunk in again for p in chunk if age_seconds(p) >= self._give_up_after_seconds}
                outcomes.update(dict.fromkeys(late, gave_up))
                again = [rest for chunk in again if (rest := [p for p in chunk if p not in late])]
                waiting = again + sooner + later
                if late:
                    continue
            await self._wait(pause, attempt, keep_on)
            attempt += 1
        return [outcomes[position] for position in range(len(items))]

    async def _all_of(self, items: Sequence[Item | Skipped | Rejected], chunks: Sequence[Chunk]) -> list[Verdict]:
        room = asyncio.Semaphore(self._max_in_flight)

        async def one(chunk: Chunk) -> Verdict:
            async with room:
                await self._pace.turn(len(chunk))
                return await self._send([items[position] for position in chunk])  # type: ignore[misc] # no outcomes

        return list(await asyncio.gather(*map(one, chunks)))

    async def _wait(self, pause: Retry | Misconfigured, attempt: int, keep_on: Callable[[], None]) -> None:
        asked = pause.after_seconds if isinstance(pause, Retry) else None
        seconds = backoff_seconds(attempt, asked, self._draw())
        reason = pause.reason if isinstance(pause, Retry) else pause.message
        logger.warning("%s waits %.1f s: %s", self._connection, seconds, reason)
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            await self._sleep(min(left, _TICK_SECONDS))
            keep_on()
