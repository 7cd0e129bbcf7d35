"""SIGTERM, SIGINT and SIGHUP at any moment of a role's life: a clean stop with exit code 0 and without a traceback.

The signals are blocked in every thread, and one thread waits for them. So a signal is noticed at once, also while the main thread
is inside a C call (librdkafka's calls take up to 30 s), and none interrupts Python code half-way. A process that is started with
the signals blocked has no moment at all at which one of them kills it: they stay pending until `take`.

    starting --signal--> stopped: nothing is held yet, so the process ends at once
    running  --signal--> stopping: the role's own `stop` is called, and must end it before the deadline
    stopping --signal or deadline--> stopped
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from enum import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:  # imported before everything else: typing and logging take longer than all the rest
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""SIGHUP comes from a terminal that is closed. A changed file needs no signal: it is watched."""


class Stage(Enum):
    """Where a role is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Action(Enum):
    """What a signal leads to."""

    EXIT = "exit"
    STOP = "stop"


def on_signal(stage: Stage) -> tuple[Stage, Action]:
    """The stage after a signal, and what to do. Only a running role has something to finish; a second signal ends it at once."""
    return Stage.STOPPING, (Action.STOP if stage is Stage.RUNNING else Action.EXIT)


class StopSignals:
    """The stop signals of this process. `take` first, `running` once there is something to stop, `exit` at the end."""

    def __init__(self, end: Callable[[int], object] = os._exit) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._stage = Stage.STARTING
        self._stop: Callable[[], None] | None = None
        self._deadline_seconds: float | None = None
        self._taken = False

    @property
    def is_taken(self) -> bool:
        """Is this process a role, that ends by `exit`?"""
        return self._taken

    @property
    def is_stopping(self) -> bool:
        """Has a signal come? Long work in a thread asks this, and gives up."""
        return self._stage is Stage.STOPPING

    def take(self) -> None:
        """Block the signals in this and all later threads, and wait for them in one. Call from the main thread, first of all.

        SIGINT and SIGHUP that are ignored (`nohup`, a job in the background) stay ignored.
        """
        if self._taken:
            return
        self._taken = True
        wanted = {number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
        wanted.add(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        threading.Thread(target=self._wait, args=(wanted,), name="signals", daemon=True).start()

    @contextmanager
    def running(self, stop: Callable[[], None], deadline_seconds: float | None = None) -> Iterator[None]:
        """Within the block the first signal calls `stop` (from another thread; it must not block), once.

        A process that has not left `deadline_seconds` later ends all the same. Without `take`, as in a test, `stop` is called by
        ordinary signal handlers, and there is no deadline.
        """
        with self._lock:
            if self._stage is Stage.STARTING:
                self._stage, self._stop, self._deadline_seconds = Stage.RUNNING, stop, deadline_seconds
        if self._taken:
            yield
            return
        former = _handlers(lambda *_: self._noticed())
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            self._stage, self._stop = Stage.STARTING, None

    def exit(self, code: int = 0) -> NoReturn:
        """End the process. Threads that hang in a call (Kafka, a name server) are not waited for, as the interpreter would."""
        if logging := sys.modules.get("logging"):
            logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        if self.is_stopping:
            _say("stopped")
        self._end(code)
        raise SystemExit(code)

    def _wait(self, wanted: set[signal.Signals]) -> None:
        while True:
            signal.sigwait(wanted)
            self._noticed()

    def _noticed(self) -> None:
        with self._lock:
            self._stage, action = on_signal(self._stage)
            stop = self._stop
        if action is Action.EXIT or stop is None:
            _say("stopped")
            self._end(0)
            return
        if self._taken and self._deadline_seconds is not None:
            late = threading.Timer(self._deadline_seconds, self._too_late)
            late.daemon = True
            late.start()
        stop()

    def _too_late(self) -> None:
        _say(f"stopped without a clean end: waited_seconds={self._deadline_seconds:g}", "W")
        self._end(0)


def _handlers(handler: Callable[..., None]) -> dict[signal.Signals, Any]:
    try:
        return {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    except ValueError:  # not the main thread
        return {}


def _say(event: str, level: str = "I") -> None:
    """One line on stderr, in the format of the log, without its locks: another thread may hold one. Drops it where nobody reads."""
    now = time.time()
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    line = f"{moment},{int(now * 1000) % 1000:03d} {level} hitrouter: {event}\n"
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 1.0)[1]:
            os.write(2, line.encode())


SIGNALS = StopSignals()
"""This process's."""
