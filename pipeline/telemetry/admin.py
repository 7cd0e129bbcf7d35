"""Serves the admin endpoint of a worker, /healthz, /readyz and /metrics, on its own thread.

So it responds from the start of the process to its end, even while the event loop starts, stops or hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

from aiohttp import web
from prometheus_client import Gauge, generate_latest

from pipeline.telemetry.admin_port import HOLDER_HEADER, claim_port
from pipeline.telemetry.health import Health

logger = logging.getLogger(__name__)

READY = Gauge("hitrouter_ready", "1 while /readyz answers 200, else 0.")

_SHUTDOWN_SECONDS = 0.5  # a client that does not read its response must not delay the end of the process
_JOIN_SECONDS = 3.0


@contextlib.contextmanager
def admin_endpoint(health: Health, address: str) -> Iterator[str]:
    """Serve `health` on `address` while the block runs. Yields the actual host:port, which differs if the port is 0.

    Raises ConfigurationError if the address is in use.
    """
    listener = claim_port(address, health.owner)
    host, port = listener.getsockname()[:2]
    server = _Server(health, listener)
    server.start()
    served = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    logger.info("admin endpoint: worker=%s url=%s", health.owner, f"http://{served}/readyz")
    try:
        yield served
    finally:
        server.stop()


class _Server:
    """Serves the paths on a thread with its own event loop."""

    def __init__(self, health: Health, listener: socket.socket) -> None:
        self._health = health
        self._listener = listener
        self._loop = asyncio.SelectorEventLoop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="admin", daemon=True)

    def start(self) -> None:
        """Start the thread. Requests that arrived earlier wait in the socket's backlog."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Blocks for a few seconds at most."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            logger.exception("admin endpoint failed: worker=%s", self._health.owner)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        app = web.Application()
        app.on_response_prepare.append(self._add_holder_header)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/{name}", self._page),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.SockSite(runner, self._listener).start()
            await self._stopping.wait()
        finally:
            await runner.cleanup()

    async def _add_holder_header(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers[HOLDER_HEADER] = self._health.holder

    async def _healthz(self, _: web.Request) -> web.Response:
        hangs = self._health.liveness.hangs(time.monotonic())
        if hangs:
            return web.Response(status=503, text="\n".join(["not alive", *hangs]) + "\n")
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        verdict = self._health.readiness.verdict(time.monotonic())
        return web.Response(status=200 if verdict.ready else 503, text=verdict.text)

    async def _metrics(self, _: web.Request) -> web.Response:
        READY.set(self._health.readiness.verdict(time.monotonic()).ready)
        return web.Response(body=generate_latest(), content_type="text/plain", charset="utf-8")

    async def _page(self, request: web.Request) -> web.Response:
        page = self._health.pages.get(request.path)
        if page is None:
            raise web.HTTPNotFound
        body = page(request.query, request.remote or "")
        return web.Response(body=body, content_type="application/x-ndjson", charset="utf-8")
