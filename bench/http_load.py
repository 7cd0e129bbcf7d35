"""A load for HTTP servers: so many connections that each send the next request when the last is answered.

python -m bench.http_load HOST PORT REQUESTS_FILE REQUEST_BYTES COUNT CONNECTIONS

The file holds requests of equal length, which are sent in turn.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import cast

import uvloop


class Client(asyncio.Protocol):
    """One connection; counts down what all of them share."""

    left = 0
    failed = 0

    def __init__(self, requests: Iterator[bytes], done: asyncio.Event) -> None:
        self._requests = requests
        self._done = done
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if length and len(body) < int(length):
            return
        self._received = b""
        Client.failed += not head.startswith((b"HTTP/1.1 204", b"HTTP/1.1 200"))
        Client.left -= 1
        if Client.left > 0:
            self._transport.write(next(self._requests))
        else:
            self._done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if Client.left > 0:
            Client.failed += 1
            self._done.set()


async def load(host: str, port: int, requests: Sequence[bytes], count: int, connections: int) -> None:
    """Raises RuntimeError when one request was not answered with 200 or 204."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    Client.left = count
    in_turn = cycle(requests)
    clients = [await loop.create_connection(lambda: Client(in_turn, done), host, port) for _ in range(connections)]
    await done.wait()
    for transport, _ in clients:
        transport.close()
    if Client.failed:
        raise RuntimeError(f"{Client.failed} requests failed")


if __name__ == "__main__":
    everything, size = Path(sys.argv[3]).read_bytes(), int(sys.argv[4])
    in_file = [everything[start : start + size] for start in range(0, len(everything), size)]
    uvloop.run(load(sys.argv[1], int(sys.argv[2]), in_file, int(sys.argv[5]), int(sys.argv[6])))
