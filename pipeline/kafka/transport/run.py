"""Running Faust apps in the foreground, through Faust's own worker."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any

import faust
import mode
import uvloop

_FOLLOW_SECONDS = 2.0

Beside = Callable[[Callable[[], bool]], Awaitable[None]]
"""What runs beside the apps until the function that it is given says stop."""
Wanted = Mapping[str, tuple[Hashable, Callable[[], faust.App]]]
"""Apps by name: what makes one another app than before, and how it is built."""


class Loop(uvloop.Loop):
    """uvloop's, but names are looked up by the loop's own threads, as asyncio does.

    uvloop leaves it to libuv, which does two at a time in all: two destinations whose name servers did not answer kept every
    other one from being found, for 18 s at a time.
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
        """socket.getaddrinfo in a thread."""
        return await self.run_in_executor(None, socket.getaddrinfo, host, port, family, type, proto, flags)


class _Worker(faust.Worker):
    """Faust's worker, but logging and terminal stay as the command line has set them up."""

    def __init__(self, *apps: Any, **options: Any) -> None:
        super().__init__(*apps, debug=False, redirect_stdouts=False, quiet=True, console_port=0, **options)
        self.spinner = None

    def _setup_logging(self) -> None:
        pass


class _Fleet(mode.Service):
    """The apps that are wanted now; those that are not wanted any more leave, the others go on undisturbed."""

    def __init__(
        self, wanted: Wanted, follow: Callable[[], Awaitable[Wanted | None]], beside: Beside | None = None
    ) -> None:
        super().__init__()
        self._beside = beside
        self._follow = follow
        self._wanted = wanted
        self._apps: dict[str, tuple[Hashable, faust.App]] = {}

    async def on_started(self) -> None:
        await self._become(self._wanted)

    @mode.Service.task
    async def _running_beside(self) -> None:
        if self._beside is not None:
            await self._beside(lambda: self.should_stop)

    @mode.Service.task
    async def _following(self) -> None:
        while not self.should_stop:
            await self.sleep(_FOLLOW_SECONDS)
            wanted = await self._follow()
            if wanted is not None:
                await self._become(wanted)

    async def _become(self, wanted: Wanted) -> None:
        leaving = [name for name, (key, _) in self._apps.items() if name not in wanted or wanted[name][0] != key]
        apps = [self._apps.pop(name)[1] for name in leaving]
        await asyncio.gather(*(self.remove_dependency(app) for app in apps))
        for name, (key, build) in wanted.items():
            if name not in self._apps:
                app = build()
                self._apps[name] = (key, app)
                await self.add_runtime_dependency(app)


class _FleetWorker(mode.Worker):
    """The worker that Faust's own is made of, for apps that come and go."""

    def _setup_logging(self) -> None:
        pass


def run_app(app: faust.App) -> None:
    """Run `app` until SIGTERM or SIGINT; it finishes the transaction at work and leaves its group.

    Returns after a clean stop; a crash ends the process with a non-zero code.
    """
    _Worker(app).execute_from_commandline()


def run_apps(wanted: Wanted, follow: Callable[[], Awaitable[Wanted | None]], beside: Beside | None = None) -> None:
    """Run apps until SIGTERM or SIGINT. `follow` is asked every two seconds which ones are wanted; None: the same.

    An app whose key has changed is stopped, as by SIGTERM, and built anew.
    """
    worker = _FleetWorker(
        _Fleet(wanted, follow, beside),
        debug=False,
        redirect_stdouts=False,
        quiet=True,
        console_port=0,
        blocking_timeout=0.0,
        loop=Loop(),  # a tenth less for what delivers by HTTP, and nothing lost for the rest
    )
    worker.execute_from_commandline()
