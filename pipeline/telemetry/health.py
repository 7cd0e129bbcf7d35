"""The health of this process: a thread looks at it every few seconds, and the admin endpoint serves it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from pipeline.telemetry.liveness import Liveness
from pipeline.telemetry.readiness import Readiness, State, stopping

logger = logging.getLogger("hitrouter.health")

Page = Callable[[Mapping[str, str], str], bytes]
"""Returns JSON lines for the query of a request and the address of its client; runs on the thread of the admin endpoint."""


class Health:
    """What /healthz and /readyz of one worker rest on. It is not ready before `started`."""

    def __init__(self, role: str, slot: int) -> None:
        self.owner = f"{role}-{slot}"
        """Names the worker in logs and messages."""
        self.holder = f"{self.owner}, process {os.getpid()}"
        self.readiness = Readiness()
        self.liveness = Liveness()
        self.pages: dict[str, Page] = {}
        """More pages of the admin endpoint, by path."""
        self._was_ready: bool | None = None
        self.readiness.begin("process", State.STARTING, "it has not joined or opened its port yet", time.monotonic())

    def started(self) -> None:
        """The role runs: from now on its own conditions decide."""
        self.readiness.end("process", State.STARTING)

    def stops_when(self, is_stopping: Callable[[], bool]) -> None:
        """The process is not ready, and may end its event loop, once `is_stopping` returns true."""
        self.readiness.add(stopping(is_stopping))
        self.liveness.add_stop(is_stopping)

    @contextlib.contextmanager
    def watched(self, look: Callable[[], float]) -> Iterator[None]:
        """Call `look` on a thread while the block runs; it returns the seconds until the next call.

        The thread also logs each change between ready and not ready. `look` may block for some seconds.
        """
        ended = threading.Event()

        def run() -> None:
            pause_seconds = 0.0
            while not ended.wait(pause_seconds):
                try:
                    pause_seconds = look()
                    self._log_changes(time.monotonic())
                except Exception:
                    pause_seconds = 1.0
                    logger.exception("looking at the health failed: worker=%s", self.owner)

        # A daemon, since `look` may be waiting for Kafka when the process ends.
        threading.Thread(target=run, name="health", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _log_changes(self, now: float) -> None:
        verdict = self.readiness.verdict(now)
        if verdict.ready == self._was_ready:
            return
        self._was_ready = verdict.ready
        state = "ready" if verdict.ready else "not_ready"
        logger.info("readiness changed: worker=%s state=%s conditions=%s", self.owner, state, list(verdict.lines))
