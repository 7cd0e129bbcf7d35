"""Trying until every hit of a batch has an outcome that lasts: backoff, one probe at a time, giving up (contract.md, section 6)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from pipeline.destination import HttpRequest, Misconfigured, Outcome, Rejected, Retry, Skipped

logger = logging.getLogger("hitrouter.deliver")

FIRST_BACKOFF_SECONDS = 1.0
LAST_BACKOFF_SECONDS = 300.0
_TICK_SECONDS = 0.25

Send = Callable[[HttpRequest], Awaitable[Outcome]]


def backoff_seconds(attempt: int, asked: float | None, draw: float) -> float:
    """Full jitter: `draw` (0..1) of 1 s doubled per attempt, at most 5 min; never sooner than the destination asked."""
    jittered = draw * min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(attempt, 16))
    return min(LAST_BACKOFF_SECONDS, max(jittered, asked or 0.0))


class Attempts:
    """Delivers requests of one connection.

    `keep_on` raises when the batch must be dropped (its partitions are gone, or the worker stops).
    """

    def __init__(
        self,
        connection: str,
        send: Send,
        max_in_flight: int,
        give_up_after_seconds: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._connection = connection
        self._send = send
        self._max_in_flight = max_in_flight
        self._give_up_after_seconds = give_up_after_seconds
        self._clock = clock
        self._sleep = sleep
        self._draw = draw

    async def deliver(self, requests: Sequence[HttpRequest | Skipped], keep_on: Callable[[], None]) -> list[Outcome]:
        """One final outcome (Delivered, Rejected, Skipped) per request, in their order."""
        outcomes: dict[int, Outcome] = {
            position: request for position, request in enumerate(requests) if isinstance(request, Skipped)
        }
        waiting = [position for position in range(len(requests)) if position not in outcomes]
        began, attempt = self._clock(), 0
        probing = False
        while waiting:
            keep_on()
            now, later = (waiting[:1], waiting[1:]) if probing else (waiting, [])
            answers = await self._all_of([requests[position] for position in now])
            again: list[int] = []
            pause: Retry | Misconfigured | None = None
            for position, outcome in zip(now, answers, strict=True):
                if isinstance(outcome, Retry | Misconfigured):
                    again.append(position)
                    pause = outcome
                else:
                    outcomes[position] = outcome
            waiting = again + later
            if pause is None:
                probing, attempt, began = False, 0, self._clock()
                continue
            probing = True
            if isinstance(pause, Retry) and self._clock() - began >= self._give_up_after_seconds:
                for position in again:
                    outcomes[position] = Rejected(
                        "gave_up", f"no success within give_up_after; the last: {pause.reason}"
                    )
                waiting, began = later, self._clock()
                continue
            await self._wait(pause, attempt, keep_on)
            attempt += 1
        return [outcomes[position] for position in range(len(requests))]

    async def _all_of(self, requests: Sequence[HttpRequest | Skipped]) -> list[Outcome]:
        room = asyncio.Semaphore(self._max_in_flight)

        async def one(request: HttpRequest | Skipped) -> Outcome:
            if isinstance(request, Skipped):
                return request
            async with room:
                return await self._send(request)

        return list(await asyncio.gather(*map(one, requests)))

    async def _wait(self, pause: Retry | Misconfigured, attempt: int, keep_on: Callable[[], None]) -> None:
        asked = pause.after_seconds if isinstance(pause, Retry) else None
        seconds = backoff_seconds(attempt, asked, self._draw())
        reason = pause.reason if isinstance(pause, Retry) else pause.message
        logger.warning("%s waits %.1f s: %s", self._connection, seconds, reason)
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            await self._sleep(min(left, _TICK_SECONDS))
            keep_on()
