"""The admin endpoint of a worker: /healthz, /readyz, /metrics (product.md, `admin.listen`).

The intake has the port of `admin.listen` itself. Workers on the same machine take the first free port behind it: routers from
the next one on, deliverers from the one after; the log says which.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import generate_latest

if TYPE_CHECKING:
    # At run time it would give the intake the deliverer's gauge.
    from pipeline.telemetry.waiting import Board

logger = logging.getLogger("hitrouter.admin")

_PORTS = 50
_SHUTDOWN_SECONDS = 0.5  # whoever does not read what it asked for must not keep the process


def readiness(board: Board) -> tuple[int, str]:
    """Status and text of /readyz: 503 while a connection is misconfigured, since it waits for the operator.

    A destination that is down is named, too, but it is not this worker's fault: 200.
    """
    lines = [
        f"{name}: {'misconfigured' if waiting.misconfigured else 'failing'}: {waiting.reason}"
        for name, waiting in sorted(board.connections.items())
    ]
    misconfigured = any(waiting.misconfigured for waiting in board.connections.values())
    return (503 if misconfigured else 200), "\n".join(["not ready" if misconfigured else "ready", *lines]) + "\n"


async def admin_runner(ready: Callable[[], tuple[int, str]]) -> web.AppRunner:
    """The three paths, not listening yet; `ready` gives status and text of /readyz."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        status, text = ready()
        return web.Response(status=status, text=text)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    return runner


async def serve_admin(role: str, address: str, offset: int, ready: Callable[[], tuple[int, str]]) -> web.AppRunner:
    """Serve on the first free port from `offset` behind the one of `address`; clean the runner up at the end.

    A machine without a free one goes without: hits matter more, and the log says it.
    """
    runner = await admin_runner(ready)
    listener = _free_socket(address, offset)
    if listener is None:
        logger.error("no free port behind %s: this %s worker has no /readyz and /metrics", address, role)
        return runner
    await web.SockSite(runner, listener).start()
    host, port = listener.getsockname()[:2]
    logger.info("%s admin: http://%s:%s/readyz", role, host, port)
    return runner


def _free_socket(address: str, offset: int) -> socket.socket | None:
    host, _, first = address.rpartition(":")
    for port in range(int(first) + offset, min(65_536, int(first) + offset + _PORTS)):
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            listener.bind((host.strip("[]"), port))
            # Two sockets may share an address until one of them listens.
            listener.listen(16)
        except OSError:
            listener.close()
            continue
        listener.setblocking(False)
        return listener
    return None


async def serve_until(
    role: str, stopped: Callable[[], bool], address: str, offset: int, ready: Callable[[], tuple[int, str]]
) -> None:
    """Serve until `stopped`."""
    runner = await serve_admin(role, address, offset, ready)
    try:
        while not stopped():
            await asyncio.sleep(0.5)
    finally:
        await runner.cleanup()
