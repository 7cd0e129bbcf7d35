"""A daemon thread that runs calls in order, so that a call that hangs in librdkafka does not block the exit of the process.

`ThreadPoolExecutor` does not work here: it joins its threads at exit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


ABANDONED_MOST = 200
"""Limit of abandoned calls, since each holds some threads. 50 connections may abandon 50 calls in one broker restart."""
_CLOSING_SECONDS = 30.0
"""A `close` call that runs for this long counts as abandoned."""
_abandoned: list[tuple[float, DaemonThread]] = []
"""Abandoned threads, each with the monotonic time from which it counts; that time may be in the future."""
_abandoned_lock = threading.Lock()


def abandoned_calls() -> int:
    """Return how many abandoned calls of this process have not returned."""
    with _abandoned_lock:
        return _count_abandoned()


def _count_abandoned() -> int:
    _abandoned[:] = [(since, thread) for since, thread in _abandoned if thread.is_alive]
    now = time.monotonic()
    return sum(since <= now for since, _ in _abandoned)


def close_in_background(close: Callable[[], object], wait_seconds: float = 0.0) -> bool:
    """Run `close` on a new thread and wait up to `wait_seconds`. Returns whether it has ended by then, even with an error.

    Closing a client that has lost its broker may block, and no caller needs the result.
    """
    thread = DaemonThread("close")
    closing = thread.submit(close)
    del close  # this frame must not keep the client alive
    ended = bool(wait([closing], wait_seconds).done)
    if ended:
        thread.stop()
    else:
        thread.abandon(_CLOSING_SECONDS)
    return ended


class DaemonThread:
    """Runs submitted calls in order until `stop`."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True until the thread has ended."""
        return self._thread.is_alive()

    def submit(
        self, call: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Future[Result]:
        """Queue `call` and return the future of its result."""
        future: Future[Result] = Future()
        self._jobs.put((future, call, arguments, options))
        return future

    def stop(self) -> None:
        """End the thread after the queued calls. Returns at once."""
        self._jobs.put(None)

    def abandon(self, grace_seconds: float = 0.0) -> None:
        """Stop a thread whose call may never return. After `grace_seconds` it counts as abandoned until the call returns."""
        with _abandoned_lock:
            _count_abandoned()
            _abandoned.append((time.monotonic() + grace_seconds, self))
        self.stop()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call, arguments, options = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call(*arguments, **options)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            # A waiting thread must not keep the arguments of the last call alive, since destroying a producer blocks.
            del job, future, call, arguments, options
