"""Side effects outside Kafka, such as HTTP requests: how many are in flight, and whether more may start.

Runs on the loop. After a pause, a worker may have lost its slot or its partitions without knowing it. Then side effects wait
until Kafka has confirmed both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from pipeline.kafka.transport.protocols import Membership

VERIFY_AFTER_SECONDS = 10.0
"""After a pause of this length, side effects wait for a confirmation."""


class SideEffects:
    """The side effects of one consumer."""

    def __init__(self, membership: Callable[[], Membership], clock: Callable[[], float]) -> None:
        self._membership = membership
        self._clock = clock
        self._in_flight = 0
        self._ended = asyncio.Event()
        self._ended.set()
        self._requested_at = self._confirmed_at = clock()

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count one side effect for the time of the block."""
        self._in_flight += 1
        self._ended.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._ended.set()

    async def wait(self, seconds: float) -> None:
        """Wait up to `seconds` until none is in flight."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), max(0.0, seconds))

    def confirmed(self, requested_at: float) -> None:
        """Record that Kafka has committed a transaction, whose commit was requested at `requested_at`."""
        self._requested_at, self._confirmed_at = requested_at, self._clock()

    def doubt(self) -> None:
        """Require a confirmation before the next side effect, because the next commit may fail, too."""
        self._confirmed_at = float("-inf")

    @property
    def need_confirmation(self) -> bool:
        """Whether the last confirmation is too old, or older than a suspension of the process."""
        return self._clock() - self._confirmed_at > VERIFY_AFTER_SECONDS or self.was_suspended

    @property
    def was_suspended(self) -> bool:
        """Whether the process was suspended for long after the last confirmation was requested."""
        return self._membership().suspended_at > self._requested_at
