"""What only a browser's DevTools can do: open a page, ask it, take its network away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

_DEADLINE_SECONDS = 60.0


class DevTools:
    """One session with the first page of a browser that `tests.npm.browser` has started with `profile`."""

    def __init__(self, profile: Path) -> None:
        self._port_file = profile / "DevToolsActivePort"
        self._runner = asyncio.Runner()
        self._number = 0

    def __enter__(self) -> DevTools:
        self._runner.run(self._connect())
        self.call("Network.enable")
        self.call("Page.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._session.close())
        self._runner.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a command of the DevTools protocol; raises AssertionError where it fails."""
        return self._runner.run(self._call(method, parameters))

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page, once its promise is fulfilled."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def navigate(self, url: str) -> None:
        """Leave the page for another one."""
        self.call("Page.navigate", url=url)

    def network(self, *, online: bool) -> None:
        """Take the page's network away, or give it back; its scripts are told."""
        self.call(
            "Network.emulateNetworkConditions",
            offline=not online,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def block(self, *patterns: str) -> None:
        """Let requests to these addresses fail, and to no others; the page's scripts are not told."""
        self.call("Network.setBlockedURLs", urls=patterns)

    async def _connect(self) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        self._session = aiohttp.ClientSession()
        while True:
            try:
                port = self._port_file.read_text().split()[0]
                async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [target for target in await answer.json() if target["type"] == "page"]
                self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
                return
            except (OSError, IndexError, aiohttp.ClientError):
                assert time.monotonic() < deadline, "the browser opened no DevTools"
                await asyncio.sleep(0.05)

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=_DEADLINE_SECONDS)
            if message.get("id") == self._number:
                assert "error" not in message, (method, message)
                return message["result"]
