"""Limits what one HTTP connection buffers: it pauses reading, notes when the client reads no answers, and counts held bodies."""

from __future__ import annotations

from pipeline.intake.connection_state import Lifecycle
from pipeline.intake.exchange import Exchange
from pipeline.intake.server_state import HELD_BYTES, ServerState


class FlowControl:
    """The pauses of one HTTP connection, and its part of `ServerState.held_bytes`."""

    __slots__ = ("_held_bytes", "_lifecycle", "_server", "is_reading_paused", "is_writing_paused")

    def __init__(self, server: ServerState, lifecycle: Lifecycle) -> None:
        self._server = server
        self._lifecycle = lifecycle
        self._held_bytes = 0
        self.is_reading_paused = False
        """Whether the transport reads no input, because requests are queued."""
        self.is_writing_paused = False
        """Whether the write buffer is full, because the client does not read its answers."""

    def pause_reading(self) -> None:
        """Stop reading, unless it is stopped already."""
        transport = self._lifecycle.transport
        if transport is not None and not self.is_reading_paused:
            self.is_reading_paused = True
            transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again, if reading is paused."""
        transport = self._lifecycle.transport
        if transport is not None and self.is_reading_paused:
            self.is_reading_paused = False
            transport.resume_reading()

    def hold(self, exchange: Exchange, held_bytes: int) -> None:
        """Count `held_bytes` of this exchange against HELD_BYTES, replacing its previous count."""
        if self._lifecycle.transport is not None:
            change = held_bytes - exchange.held_bytes
            exchange.held_bytes = held_bytes
            self._held_bytes += change
            self._server.held_bytes += change

    @property
    def is_over_limit(self) -> bool:
        """Whether all connections of the process together hold too much."""
        return self._server.held_bytes > HELD_BYTES

    def release(self) -> None:
        """Give back what this connection holds; call it when the connection is lost."""
        self._server.held_bytes -= self._held_bytes
        self._held_bytes = 0
