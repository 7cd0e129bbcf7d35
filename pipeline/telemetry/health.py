"""Holds the health of this process. A thread checks it every few seconds, and the admin endpoint serves it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from pipeline.telemetry.liveness import Liveness
from pipeline.telemetry.readiness import Readiness, State, stopping

logger = logging.getLogger(__name__)

Page = Callable[[Mapping[str, str], str], bytes]
"""Returns JSON lines for the query of a request and the address of its client. Runs on the thread of the admin endpoint."""


class Health:
    """The conditions behind /healthz and /readyz of one worker. The worker is not ready before `started`."""

    def __init__(self, role: str, slot: int) -> None:
        self.owner = f"{role}-{slot}"
        """Name of the worker in logs and messages."""
        self.holder = f"{self.owner}, process {os.getpid()}"
        self.readiness = Readiness()
        self.liveness = Liveness()
        self.pages: dict[str, Page] = {}
        """Additional pages of the admin endpoint, by path."""
        self._was_ready: bool | None = None
        self.readiness.begin(
            "process", State.STARTING, "it has not joined its group or opened its port yet", time.monotonic()
        )

    def started(self) -> None:
        """End the condition `starting`; from now on the conditions of the role decide."""
        self.readiness.end("process", State.STARTING)

    def stops_when(self, is_stopping: Callable[[], bool]) -> None:
        """Report `stopping`, and allow the event loop to end, once `is_stopping` returns true."""
        self.readiness.add(stopping(is_stopping))
        self.liveness.add_stop(is_stopping)

    @contextlib.contextmanager
    def watched(self, check: Callable[[], float]) -> Iterator[None]:
        """Call `check` on a thread while the block runs. `check` returns the seconds until its next call.

        The thread also logs each change between ready and not ready. `check` can block for some seconds.
        """
        ended = threading.Event()

        def run() -> None:
            pause_seconds = 0.0
            while not ended.wait(pause_seconds):
                try:
                    pause_seconds = check()
                    self._log_changes(time.monotonic())
                except Exception:
                    pause_seconds = 1.0
                    logger.exception("health check failed, will retry: worker=%s", self.owner)

        # A daemon, since `check` can be blocked by Kafka when the process ends.
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
