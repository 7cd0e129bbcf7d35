"""Runs blocking calls that can be abandoned: in daemon threads, for which the end of the process does not wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_Result = TypeVar("_Result")


def in_daemon_thread(call: Callable[[], _Result]) -> asyncio.Future[_Result]:
    """Return a future, on the running loop, for the result of `call`. Cancelling it abandons the thread.

    asyncio.to_thread is not used, since its threads are joined when the loop and the interpreter end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # None only beside an error

    def work() -> None:
        result: _Result | None = None
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=getattr(call, "__name__", "call"), daemon=True).start()
    return future


def call_until(call: Callable[[], _Result], cancelled: threading.Event) -> _Result | None:
    """Return the result of `call`, or None as soon as `cancelled` is set. Raises what `call` raises."""
    done = threading.Event()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        done.set()

    threading.Thread(target=work, name=getattr(call, "__name__", "call"), daemon=True).start()
    while not done.wait(0.05):
        if cancelled.is_set():
            return None
    if errors:
        raise errors[0]
    return results[0]
