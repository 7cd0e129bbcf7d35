"""Decides whether this process is alive, for /healthz. A supervisor can kill it otherwise; see docs/reference/health.md."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

LOOP_SECONDS = 30.0
"""Time without a turn of the event loop after which it counts as hanging."""

HangSource = Callable[[float], Iterable[str]]
"""Returns a line for each hang at a reading of time.monotonic(). Called from any thread."""


class Liveness:
    """Watches the event loop and the sources of `add`. A process that is starting or stopping counts as alive.

    Kafka, destinations and the configuration do not matter here, since a restart repairs none of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._beat_at: float | None = None
        self._sources: list[HangSource] = []
        self._stops: list[Callable[[], bool]] = []

    def beat(self, now: float) -> None:
        """Record that the event loop turns. Call it from the loop about once a second."""
        self._beat_at = now

    def add_stop(self, is_stopping: Callable[[], bool]) -> None:
        """Ignore all hangs once `is_stopping` returns true, since the loop then ends."""
        with self._lock:
            self._stops.append(is_stopping)

    def add(self, source: HangSource) -> None:
        """Add `source` to those that `hangs` asks."""
        with self._lock:
            self._sources.append(source)

    def hangs(self, now: float) -> list[str]:
        """Return a line for each hang; empty if the process is alive."""
        with self._lock:
            sources, stops = list(self._sources), list(self._stops)
        if any(is_stopping() for is_stopping in stops):
            return []
        found = [line for source in sources for line in source(now)]
        beat_at = self._beat_at
        if beat_at is not None and now - beat_at > LOOP_SECONDS:
            found.insert(0, f"event loop: hangs: it has not turned for {now - beat_at:.0f} s")
        return found
