"""Delays the responses of a Kafka broker to chosen requests, as an overloaded coordinator does: a TCP proxy."""

from __future__ import annotations

import asyncio
import struct
import threading
from contextlib import suppress

ADD_OFFSETS_TO_TXN, END_TXN = 25, 26
"""API keys of the Kafka protocol: https://kafka.apache.org/protocol#protocol_api_keys"""


class SlowProxy:
    """Listens on `listen` and forwards to `target`. `delays` maps API keys to seconds; it can change at any time.

    Responses of one TCP connection stay in order, so those behind a delayed one wait, too. librdkafka has a separate
    TCP connection to the transaction coordinator, so fetching and producing are not delayed.
    """

    def __init__(self, listen: str, target: str) -> None:
        self.delays: dict[int, float] = {}
        self._listen = listen.rpartition(":")
        self._target = target.rpartition(":")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="slow proxy", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        """Close all sockets and end the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, self._listen[0], int(self._listen[2]))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker_reader, broker_writer = await asyncio.open_connection(self._target[0], int(self._target[2]))
        except OSError:
            writer.close()
            return
        delayed: dict[int, float] = {}
        ways = [
            asyncio.create_task(self._requests(reader, broker_writer, delayed)),
            asyncio.create_task(self._answers(broker_reader, writer, delayed)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (writer, broker_writer):
            end.close()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delayed: dict[int, float]
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _frame(reader)
                api_key, _, correlation = struct.unpack_from(">hhi", frame, 4)
                if seconds := self.delays.get(api_key, 0.0):
                    delayed[correlation] = self._loop.time() + seconds
                writer.write(frame)
                await writer.drain()

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delayed: dict[int, float]
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _frame(reader)
                until = delayed.pop(struct.unpack_from(">i", frame, 4)[0], 0.0)
                await asyncio.sleep(max(0.0, until - self._loop.time()))
                writer.write(frame)
                await writer.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(struct.unpack(">i", head)[0])
