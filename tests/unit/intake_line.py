"""An HTTP connection of the intake without a socket, for tests."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, cast

from pipeline.config import ProjectConfig
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.protocol import IntakeProtocol
from pipeline.intake.server_state import ServerState
from pipeline.intake.tokens import Tokens
from pipeline.stages.accept import Accepted


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self, peer: str = "203.0.113.9") -> None:
        super().__init__({"peername": (peer, 4711)})
        self.written: list[bytes] = []
        self.closed = self.aborted = False
        self.reading = True
        self.said_all = False

    def write(self, data: Any) -> None:
        if self.said_all:
            raise RuntimeError("Cannot call write() after write_eof()")  # as uvloop does
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def write_eof(self) -> None:
        self.said_all = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Kept:
    """A fake store; the test decides when it reports."""

    def __init__(self) -> None:
        self.hits: list[Accepted] = []
        self.reports: list[Any] = []

    def store(self, hit: Accepted, report: Any) -> bool:
        self.hits.append(hit)
        self.reports.append(report)
        return True


def request(body: bytes, *more: str, token: str = "old", path: str = "/track") -> bytes:
    authorization = base64.b64encode(f"{token}:".encode()).decode()
    head = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Authorization: Basic {authorization}",
    ]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", *more]).encode() + b"\r\n\r\n" + body


class Line:
    """A connection to an intake with a project `shop` and its token `old`; a given `state` is shared with another connection."""

    def __init__(self, state: ServerState | None = None, peer: str = "203.0.113.9") -> None:
        self.tokens = Tokens({"shop": ProjectConfig(tokens=["old"])})
        self.store = Kept() if state is None else cast(Kept, state.store)
        self.state = state or ServerState(
            Endpoints(self.tokens), self.store, b"{}", ClientAddress([]), lambda address: address
        )
        self.wire = Wire(peer)
        self.connection = IntakeProtocol(self.state)
        self.connection.connection_made(self.wire)

    def ask(self, data: bytes) -> bytes:
        """Return the answer once all hits are stored."""
        self.connection.data_received(data)
        while self.store.reports:
            self.store.reports.pop(0)(True)
        return self.wire.written[-1][9:12]
