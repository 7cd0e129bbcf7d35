"""Whether this process is alive: /healthz. A supervisor may kill a process that is not; see docs/operations.md, "Health"."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

LOOP_SECONDS = 30.0
"""An event loop that has not turned for this long hangs."""

HangSource = Callable[[float], Iterable[str]]
"""Returns what hangs at a reading of time.monotonic(); called from any thread."""


class Liveness:
    """Watches the event loop, and what `add` names. A process that starts or stops counts as alive.

    Kafka, destinations and the configuration play no part: a restart mends none of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._beat_at: float | None = None
        self._sources: list[HangSource] = []
        self._stops: list[Callable[[], bool]] = []

    def beat(self, now: float) -> None:
        """The event loop turns; call it from the loop every second or so."""
        self._beat_at = now

    def add_stop(self, is_stopping: Callable[[], bool]) -> None:
        """Nothing counts as a hang once `is_stopping` returns true: the loop may end."""
        with self._lock:
            self._stops.append(is_stopping)

    def add(self, source: HangSource) -> None:
        """Ask `source`, too."""
        with self._lock:
            self._sources.append(source)

    def hangs(self, now: float) -> list[str]:
        """What hangs, a line each; empty while the process is alive."""
        with self._lock:
            sources, stops = list(self._sources), list(self._stops)
        if any(is_stopping() for is_stopping in stops):
            return []
        found = [line for source in sources for line in source(now)]
        beat_at = self._beat_at
        if beat_at is not None and now - beat_at > LOOP_SECONDS:
            found.insert(0, f"event loop: hangs: it has not turned for {now - beat_at:.0f} s")
        return found
