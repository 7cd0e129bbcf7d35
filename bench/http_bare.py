"""What uvloop and httptools cost alone: every request is parsed and answered with 204, nothing else. python -m bench.http_bare PORT"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import uvloop

from pipeline.garbage import collect_seldom
from pipeline.intake.answers import NO_CONTENT


class Bare(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """httptools makes it only where it is asked for."""

    def on_message_complete(self) -> None:
        self._transport.write(NO_CONTENT)


async def serve(port: int) -> None:
    """Until killed."""
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port)
    collect_seldom()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
