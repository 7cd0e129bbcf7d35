"""Stops a role on SIGTERM, SIGINT or SIGHUP at any moment: cleanly, with exit code 0 and without a traceback.

The signals are blocked in every thread, and one thread waits for them. So a signal takes effect at once, even while the main
thread is inside a C call (librdkafka's calls take up to 30 s), and it never interrupts Python code. If the process is started
with the signals blocked, they can never kill it: they stay pending until `install`.

    starting --signal--> stopped: the process holds nothing yet, so it ends at once
    running  --signal--> stopping: `stop` of the role is called, and must end the process before the deadline
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

from pipeline.process.log_format import JSON, PROCESS_VARIABLE, VARIABLE

TYPE_CHECKING = False
if TYPE_CHECKING:  # this module is imported first; importing typing and logging takes longer than all the rest
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""SIGHUP means that the terminal was closed. A changed configuration needs no signal, since the file is watched."""


class Stage(Enum):
    """Stage of the life cycle of a role."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Action(Enum):
    """What to do on a signal."""

    EXIT = "exit"
    STOP = "stop"


def on_signal(stage: Stage) -> tuple[Stage, Action]:
    """Return the stage after a signal, and what to do. Only a running role has work to finish; a second signal ends it at once."""
    return Stage.STOPPING, (Action.STOP if stage is Stage.RUNNING else Action.EXIT)


class StopSignals:
    """The stop signals of this process. Call `install` first, `running` once there is something to stop, `exit` at the end."""

    def __init__(self, end_process: Callable[[int], object] = os._exit) -> None:
        self._end_process = end_process
        self._lock = threading.Lock()
        self._stage = Stage.STARTING
        self._stop: Callable[[], None] | None = None
        self._deadline_seconds: float | None = None
        self._is_installed = False

    @property
    def is_installed(self) -> bool:
        """Whether this process is a role, which must end by `exit`."""
        return self._is_installed

    @property
    def is_stopping(self) -> bool:
        """Whether a signal has arrived. Long work in a thread checks this and stops."""
        return self._stage is Stage.STOPPING

    def install(self) -> None:
        """Block the signals in this and all later threads, and wait for them in one thread. Call first, from the main thread.

        SIGINT and SIGHUP that are ignored (`nohup`, a background job) stay ignored.
        """
        if self._is_installed:
            return
        self._is_installed = True
        wanted = {number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
        wanted.add(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        threading.Thread(target=self._wait, args=(wanted,), name="signals", daemon=True).start()

    @contextmanager
    def running(self, stop: Callable[[], None], deadline_seconds: float | None = None) -> Iterator[None]:
        """Call `stop` once, on the first signal within the block. It is called from another thread and must not block.

        The process ends after `deadline_seconds` even if the block has not ended. Without `install`, as in a test, ordinary signal
        handlers call `stop`, and there is no deadline.
        """
        with self._lock:
            if self._stage is Stage.STARTING:
                self._stage, self._stop, self._deadline_seconds = Stage.RUNNING, stop, deadline_seconds
        if self._is_installed:
            yield
            return
        previous = _set_handlers(lambda *_: self._handle_signal())
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._stage, self._stop = Stage.STARTING, None

    def exit(self, code: int = 0) -> NoReturn:
        """End the process without waiting for threads that hang in a call (Kafka, DNS); the interpreter would wait for them."""
        if logging := sys.modules.get("logging"):
            logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        if self.is_stopping:
            _log("stopped")
        self._end_process(code)
        raise SystemExit(code)

    def _wait(self, wanted: set[signal.Signals]) -> None:
        while True:
            signal.sigwait(wanted)
            self._handle_signal()

    def _handle_signal(self) -> None:
        with self._lock:
            self._stage, action = on_signal(self._stage)
            stop = self._stop
        if action is Action.EXIT or stop is None:
            _log("stopped")
            self._end_process(0)
            return
        if self._is_installed and self._deadline_seconds is not None:
            deadline = threading.Timer(self._deadline_seconds, self._end_at_deadline)
            deadline.daemon = True
            deadline.start()
        stop()

    def _end_at_deadline(self) -> None:
        _log("stopped without a clean end", "WARNING", waited_seconds=self._deadline_seconds or 0.0)
        self._end_process(0)


def _set_handlers(handler: Callable[..., None]) -> dict[signal.Signals, Any]:
    try:
        return {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    except ValueError:  # not the main thread
        return {}


def _log(event: str, level: str = "INFO", **fields: float) -> None:
    """Write a line to stderr in the format of the log, but without its locks, which another thread can hold.

    Drops the line if it cannot be written within a second, as when no process reads the pipe.
    """
    now = time.time()
    line = (_json_line if os.environ.get(VARIABLE, "").lower() == JSON else _text_line)(now, event, level, fields)
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 1.0)[1]:
            os.write(2, f"{line}\n".encode())


def _text_line(now: float, event: str, level: str, fields: dict[str, float]) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    pairs = " ".join(f"{key}={value:g}" for key, value in fields.items())
    text = f"{event}: {pairs}" if pairs else event
    return f"{moment},{int(now * 1000) % 1000:03d} {level[0]} {__name__}: {text}"


def _json_line(now: float, event: str, level: str, fields: dict[str, float]) -> str:
    import json  # not at the top, since it takes longer than the rest of this module

    moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"
    process = {"process": os.environ[PROCESS_VARIABLE]} if os.environ.get(PROCESS_VARIABLE) else {}
    return json.dumps({"time": moment, "level": level, "logger": __name__, **process, "event": event, **fields})


SIGNALS = StopSignals()
"""The stop signals of this process."""
