"""Blocking calls that may be given up: in a daemon thread, which the end of the process does not wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_Result = TypeVar("_Result")


def in_daemon_thread(call: Callable[[], _Result]) -> asyncio.Future[_Result]:
    """The result of `call`, on the running loop. A cancelled future leaves the thread to itself.

    asyncio.to_thread's threads are joined when the loop and the interpreter end.
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


def call_until(call: Callable[[], _Result], given_up: threading.Event) -> _Result | None:
    """The result of `call`, or None as soon as `given_up` is set. Raises what `call` raises."""
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
        if given_up.is_set():
            return None
    if errors:
        raise errors[0]
    return results[0]
