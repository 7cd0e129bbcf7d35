"""Limits the rate of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

TICK_SECONDS = 0.25
"""Interval at which waiters check again."""


class Pace:
    """Admits at most `per_second` items, one request after the other; None means no limit."""

    def __init__(
        self, per_second: float | None, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0
        self._queue = asyncio.Lock()

    async def acquire(self, items: int, is_wanted: Callable[[], bool]) -> bool:
        """Wait until `items` may be sent, then return True. Return False once `is_wanted` returns False."""
        if self._per_second is None:
            return is_wanted()
        async with self._queue:
            begin = max(self._clock(), self._free_at)
            while is_wanted():
                if (left := begin - self._clock()) <= 0:
                    self._free_at = begin + items / self._per_second
                    return True
                await self._sleep(min(left, TICK_SECONDS))
            return False
