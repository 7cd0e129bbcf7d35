"""The rate that a connection keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

TICK_SECONDS = 0.25
"""Interval at which waiters check again."""


class Pace:
    """Lets through at most `per_second` items, one after the other; None lets all through."""

    def __init__(
        self, per_second: float | None, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0
        self._line = asyncio.Lock()

    async def turn(self, items: int, wanted: Callable[[], bool]) -> bool:
        """Wait until `items` may go; False as soon as they are not `wanted` any more."""
        if self._per_second is None:
            return wanted()
        async with self._line:
            begin = max(self._clock(), self._free_at)
            while wanted():
                if (left := begin - self._clock()) <= 0:
                    self._free_at = begin + items / self._per_second
                    return True
                await self._sleep(min(left, TICK_SECONDS))
            return False
