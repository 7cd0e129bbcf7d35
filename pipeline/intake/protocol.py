"""One HTTP/1.1 connection, directly on httptools: without a framework a request costs only microseconds.

`request_reader` turns input into requests, `response_queue` answers them in order, and `flow_control` limits what waits in between.
"""

from __future__ import annotations

import asyncio
from typing import cast

from pipeline.codec.ip_address import plain_ip
from pipeline.intake.connection_state import (
    HEADER_SECONDS,
    IDLE_SECONDS,
    READING_BODY,
    READING_HEAD,
    REFUSING,
    Lifecycle,
)
from pipeline.intake.flow_control import FlowControl
from pipeline.intake.request_reader import RequestReader
from pipeline.intake.response_queue import ResponseQueue
from pipeline.intake.server_state import ServerState


class IntakeProtocol(asyncio.Protocol):
    """Connects the parts of one HTTP connection with its transport, and with the connections of the process."""

    _lifecycle: Lifecycle
    _flow: FlowControl
    _responses: ResponseQueue
    _reader: RequestReader

    def __init__(self, state: ServerState) -> None:
        self._server = state

    # The transport ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        address = transport.get_extra_info("peername")
        peer = plain_ip(address[0]) if isinstance(address, tuple) else ""
        server = self._server
        self._lifecycle = lifecycle = Lifecycle(cast(asyncio.Transport, transport))
        self._flow = flow = FlowControl(server, lifecycle)
        self._responses = responses = ResponseQueue(server, lifecycle, flow)
        self._reader = RequestReader(server, peer, lifecycle, flow, responses)
        server.connections.add(self, peer)

    def data_received(self, data: bytes) -> None:
        self._reader.receive(data)
        if self._responses.is_stopping:
            self._responses.close_if_done()

    def eof_received(self) -> bool:
        """Return True to keep the connection open: a client that ended its input may still wait for answers."""
        self._reader.end()
        return self._responses.has_unanswered

    def pause_writing(self) -> None:
        self._flow.is_writing_paused = True

    def resume_writing(self) -> None:
        self._flow.is_writing_paused = False
        self._responses.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self._flow.release()
        self._lifecycle.mark_lost()
        self._responses.cancel_turn()
        self._server.connections.discard(self)
        self._reader.release()

    # The connections of the process ----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a request is being read or has no answer yet."""
        return self._responses.has_unanswered or self._lifecycle.state in (READING_HEAD, READING_BODY, REFUSING)

    @property
    def idle_since(self) -> float | None:
        """When it became idle, by time.monotonic(); None while busy. Before its first request: earlier by IDLE_SECONDS."""
        if self.busy or self._flow.is_writing_paused or self._lifecycle.transport is None:
            return None
        return self._lifecycle.deadline - (IDLE_SECONDS if self._reader.messages else IDLE_SECONDS + HEADER_SECONDS)

    def sweep(self, now: float) -> None:
        """Abort the connection if its deadline for sending or reading has passed; called about twice a second."""
        if now > self._lifecycle.deadline and not self._responses.is_in_flight:
            self.abort()  # close() would wait until the client has read

    def drain(self) -> None:
        """Answer the requests in flight, then close."""
        self._responses.stop()

    def abort(self) -> None:
        """Close now; unread answers are lost."""
        self._lifecycle.abort()
