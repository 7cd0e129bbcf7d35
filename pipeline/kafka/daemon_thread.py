"""One daemon thread that runs calls in order: a call that hangs inside librdkafka must not keep the process from exiting.

`ThreadPoolExecutor` joins its threads at exit, so it cannot be abandoned.
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
"""Each holds some threads. A deliverer of 50 connections may abandon 50 calls at one broker restart."""
_CLOSING_SECONDS = 30.0
"""A client that is closed for this long counts as one that hangs."""
_abandoned: list[tuple[float, DaemonThread]] = []
"""Since when each one counts, on the monotonic clock, which may be later than now."""
_abandoned_lock = threading.Lock()


def abandoned_calls() -> int:
    """Returns how many calls of this process hang in clients that were thrown away."""
    with _abandoned_lock:
        return _count_abandoned()


def _count_abandoned() -> int:
    _abandoned[:] = [(since, thread) for since, thread in _abandoned if thread.is_alive]
    now = time.monotonic()
    return sum(since <= now for since, _ in _abandoned)


def close_beside(close: Callable[[], object], seconds: float = 0.0) -> bool:
    """Run `close` on a thread of its own and wait up to `seconds`. Returns whether it has ended by then, be it with an error.

    Closing a client that has lost its broker may block, and nothing waits for what it would still do.
    """
    thread = DaemonThread("close")
    closing = thread.submit(close)
    del close  # its client must not live on in this frame
    ended = bool(wait([closing], seconds).done)
    if ended:
        thread.stop()
    else:
        thread.abandon(_CLOSING_SECONDS)
    return ended


class DaemonThread:
    """Runs submitted calls one after the other until `stop`."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while a call runs or may still run."""
        return self._thread.is_alive()

    def submit(
        self, call: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Future[Result]:
        """Queue `call`; the future holds its result or exception."""
        future: Future[Result] = Future()
        self._jobs.put((future, call, arguments, options))
        return future

    def stop(self) -> None:
        """End the thread after the calls that are queued; returns at once."""
        self._jobs.put(None)

    def abandon(self, grace_seconds: float = 0.0) -> None:
        """`stop`, for a thread whose call may never return: after `grace_seconds` it is counted until it does."""
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
            # A waiting thread must not keep the last call's arguments alive: destroying a producer blocks.
            del job, future, call, arguments, options
