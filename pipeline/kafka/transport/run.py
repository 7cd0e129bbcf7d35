"""Runs Faust apps in the foreground: starts them in parallel, follows the configuration, and stops at any time."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any

import faust
import mode
import uvloop

from pipeline.process.stop import SIGNALS

logger = logging.getLogger(__name__)

_FOLLOW_SECONDS = 2.0
_STARTS_AT_ONCE = 8
"""Each start aborts the open transaction of the previous instance; eight starts keep a one-node broker on two cores busy."""
_STOP_SECONDS = 9.0
"""Stop timeout of an app with partitions, which finishes its transaction."""
_STOP_JOINING_SECONDS = 3.0
"""Stop timeout of an app without partitions: it has no open transaction, but a call to Kafka may hang."""
_END_SECONDS = 11.0
"""The process exits after this long; the supervisor kills it after 12 s."""

BackgroundTask = Callable[[Callable[[], bool]], Awaitable[None]]
"""A task that runs alongside the apps until the function passed to it returns true."""
Wanted = Mapping[str, tuple[Hashable, Callable[[], faust.App]]]
"""Apps by name, each with a key and a function that builds it. A changed key means that the app must be rebuilt."""


class Loop(uvloop.Loop):
    """A uvloop loop that resolves names on executor threads, as asyncio does.

    uvloop leaves this to libuv, which resolves only two names at a time: two destinations with unresponsive name servers
    blocked the resolution of all others, for 18 s at a time.
    """

    async def getaddrinfo(
        self,
        host: str | bytes | None,
        port: str | bytes | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Run socket.getaddrinfo on a thread."""
        return await self.run_in_executor(None, socket.getaddrinfo, host, port, family, type, proto, flags)


class _Fleet(mode.Service):
    """Runs the wanted apps; stops those that are no longer wanted and leaves the others running."""

    logger = logging.getLogger("mode")
    """mode's own messages about a service; the command line silences this logger."""

    def __init__(
        self,
        wanted: Wanted,
        follow: Callable[[], Awaitable[Wanted | None]] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        super().__init__()
        self._background = background
        self._follow = follow
        self._wanted = wanted
        self._apps: dict[str, tuple[Hashable, faust.App]] = {}
        self._leaving: list[asyncio.Future[Any]] = []
        self._changing = asyncio.Lock()

    async def run_until(self, stopping: asyncio.Event) -> None:
        """Run until `stopping` is set or an app crashes, even during the start. Raises the error of a crashed app."""
        starting = asyncio.ensure_future(self.start())
        ending = [asyncio.ensure_future(stopping.wait()), asyncio.ensure_future(self.wait_until_stopped())]
        await asyncio.wait([starting, *ending], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done() or starting.exception() is None:
            await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        await self.stop()
        # Retrieved even on a stop; otherwise asyncio would print the error of a start that the stop has interrupted.
        error = starting.exception() if starting.done() and not starting.cancelled() else None
        if stopping.is_set():
            return
        if error is not None:
            raise error
        if self.crash_reason is not None:
            raise self.crash_reason

    async def on_started(self) -> None:
        await self._apply(self._wanted)

    @mode.Service.task
    async def _running_background(self) -> None:
        if self._background is not None:
            await self._background(lambda: self.should_stop)

    @mode.Service.task
    async def _following(self) -> None:
        while self._follow is not None and not self.should_stop:
            await self.sleep(_FOLLOW_SECONDS)
            wanted = await self._follow()
            if wanted is not None:
                await self._apply(wanted)

    async def _apply(self, wanted: Wanted) -> None:
        async with self._changing:  # a changed file must not overtake the start
            await self._stop_and_start(wanted)

    async def _stop_and_start(self, wanted: Wanted) -> None:
        leaving = [name for name, (key, _) in self._apps.items() if name not in wanted or wanted[name][0] != key]
        apps = [self._apps.pop(name)[1] for name in leaving]
        self._leaving = [asyncio.ensure_future(self.remove_dependency(app)) for app in apps]
        await asyncio.gather(*self._leaving)
        room = asyncio.Semaphore(_STARTS_AT_ONCE)

        async def join(name: str, key: Hashable, build: Callable[[], faust.App]) -> None:
            async with room:
                if not self.should_stop:
                    app = build()
                    self._apps[name] = (key, app)
                    await self.add_runtime_dependency(app)

        await asyncio.gather(*(join(name, *of) for name, of in wanted.items() if name not in self._apps))

    async def _stop_children(self) -> None:
        """Stop all apps in parallel, so that a hanging app does not delay the others. Starting apps stop joining."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_STOP_SECONDS)
        await asyncio.gather(*(self._stop_in_time(name, app) for name, (_, app) in self._apps.items()))

    async def _stop_in_time(self, name: str, app: faust.App) -> None:
        consumer = app._consumer
        seconds = _STOP_SECONDS if consumer is not None and consumer.assignment() else _STOP_JOINING_SECONDS
        stopping = asyncio.ensure_future(app.stop())
        done, _ = await asyncio.wait([stopping], timeout=seconds)
        if not done:
            logger.warning("group not left, its session will expire: app=%s waited_seconds=%.0f", name, seconds)
        elif (error := stopping.exception()) is not None:
            logger.warning("error while stopping: app=%s error=%r", name, error)


def run_app(build: Callable[[], faust.App]) -> None:
    """Build one app and run it until a stop signal. Then it finishes its open transaction and leaves its group.

    Returns after a clean stop. Raises the error of a crashed app.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    app = build()
    _run(loop, _Fleet({"app": ("", lambda: app)}))


def run_apps(
    wanted: Wanted, follow: Callable[[], Awaitable[Wanted | None]], background: BackgroundTask | None = None
) -> None:
    """Run apps until a stop signal. Every two seconds `follow` returns the wanted apps, or None for no change.

    An app with a changed key is stopped as by a signal, and rebuilt. Raises the error of a crashed app.
    """
    loop = Loop()  # uses a tenth less CPU for HTTP deliveries, and no more for others
    asyncio.set_event_loop(loop)
    _run(loop, _Fleet(wanted, follow, background))


def _run(loop: asyncio.AbstractEventLoop, fleet: _Fleet) -> None:
    """Run `fleet` until a stop signal. Does not close the loop, which would wait for hanging threads; the process exits now."""
    stopping = asyncio.Event()

    def stop() -> None:
        loop.call_soon_threadsafe(stopping.set)

    with SIGNALS.running(stop, _END_SECONDS):
        loop.run_until_complete(fleet.run_until(stopping))
