"""A guard of batches for tests: open, or stale as soon as a condition holds."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import StaleBatch


class FakeGuard:
    """`look` is called at each look, and may raise StaleBatch; `verified` counts the calls of `verify`."""

    def __init__(self, look: Callable[[], None] = lambda: None, verify: Callable[[], None] = lambda: None) -> None:
        self._look = look
        self._verify = verify
        self.verified = 0

    def raise_if_stale(self) -> None:
        """Look."""
        self._look()

    async def verify(self) -> None:
        """Verify."""
        self.verified += 1
        self._verify()


def stale_when(condition: Callable[[], object]) -> FakeGuard:
    """A guard whose batch is stale as soon as `condition` holds."""

    def look() -> None:
        if condition():
            raise StaleBatch("gone")

    return FakeGuard(look)
