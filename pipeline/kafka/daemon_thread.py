"""One daemon thread that runs calls in order: a call that hangs inside librdkafka must not keep the process from exiting.

`ThreadPoolExecutor` joins its threads at exit, so it cannot be abandoned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


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
