"""One HTTP/1.1 connection, bare on httptools: a request costs microseconds, not a framework.

Requests of one connection are answered in order; while one waits for Kafka, nothing more is read from its socket.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import httptools

from pipeline.codec.hit import BODY_BYTES
from pipeline.intake import answers
from pipeline.intake.tokens import Tokens
from pipeline.stages.accept import Accepted, Refusal, Request, accept
from pipeline.telemetry import HITS_ACCEPTED, HITS_REFUSED

HEADER_BYTES = 8192
HEADER_SECONDS = 5.0
BODY_SECONDS = 10.0
IDLE_SECONDS = 75.0
_WAITING_REQUESTS = 64


class Store(Protocol):
    """Where accepted hits go."""

    def store(self, hit: Accepted, report: Any) -> bool:
        """False when full; else `report(stored)` is called on the loop."""


@dataclass(slots=True)
class _Exchange:
    """One request under way. `refused` is known before the body is read where the headers suffice."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    url: bytes = b""
    body: list[bytes] = field(default_factory=list)
    body_bytes: int = 0
    project: str = ""
    refused: Refusal | None = None
    keep_alive: bool = True


class IntakeProtocol(asyncio.Protocol):
    """Parses, authenticates, hands the body to `accept`, answers after the acknowledgement."""

    def __init__(self, tokens: Tokens, store: Store, connections: set[IntakeProtocol]) -> None:
        self._tokens = tokens
        self._store = store
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._current: _Exchange | None = None
        self._header_bytes = 0
        self._ready: deque[_Exchange] = deque()
        self._busy = False
        self._draining = False
        self._deadline = time.monotonic() + HEADER_SECONDS

    # The socket ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            self._close()

    def sweep(self, now: float) -> None:
        """Close what is too slow; called about twice a second."""
        if not self._busy and not self._ready and now > self._deadline:
            self._close()

    def drain(self) -> None:
        """Answer what is under way, then close."""
        self._draining = True
        if not self._busy and not self._ready:
            self._close()

    @property
    def busy(self) -> bool:
        """Is an answer owed?"""
        return self._busy or bool(self._ready)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # The parser's callbacks ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._current = _Exchange()
        self._header_bytes = 0
        self._deadline = time.monotonic() + HEADER_SECONDS

    def on_url(self, url: bytes) -> None:
        assert self._current is not None
        self._current.url += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._current is not None
        self._current.headers[name.lower()] = value
        self._count_header(len(name) + len(value) + 4)

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES:
            self._close()

    def on_headers_complete(self) -> None:
        exchange = self._current
        assert exchange is not None
        self._deadline = time.monotonic() + BODY_SECONDS
        self._header_bytes = 0
        exchange.keep_alive = self._parser.should_keep_alive()
        path = httptools.parse_url(exchange.url).path
        if path != b"/track":
            exchange.refused = answers.NOT_FOUND
        elif self._parser.get_method() != b"POST":
            exchange.refused = answers.method_not_allowed("POST")
        else:
            authorization = exchange.headers.get(b"authorization")
            project = self._tokens.project(authorization.decode("latin-1") if authorization is not None else None)
            if project is None:
                exchange.refused = answers.UNAUTHORIZED
            else:
                exchange.project = project
        if exchange.refused is None and exchange.headers.get(b"expect", b"").lower() == b"100-continue":
            assert self._transport is not None
            self._transport.write(answers.CONTINUE)

    def on_body(self, body: bytes) -> None:
        exchange = self._current
        assert exchange is not None
        exchange.body_bytes += len(body)
        if exchange.body_bytes > BODY_BYTES:
            # Not read to its end: the connection can't be used again.
            if exchange.keep_alive:
                exchange.keep_alive = False
                exchange.refused = exchange.refused or answers.TOO_LARGE
                self._finish(exchange)
        elif exchange.refused is None:
            exchange.body.append(body)

    def on_message_complete(self) -> None:
        exchange, self._current = self._current, None
        if exchange is not None and exchange.body_bytes <= BODY_BYTES:
            self._finish(exchange)

    # Answering -------------------------------------------------------------------------------------------------------

    def _finish(self, exchange: _Exchange) -> None:
        self._ready.append(exchange)
        if not self._busy:
            self._next()
        elif len(self._ready) > _WAITING_REQUESTS:
            self._close()
        elif self._transport is not None:
            self._transport.pause_reading()

    def _next(self) -> None:
        while self._ready and not self._busy:
            exchange = self._ready.popleft()
            outcome = exchange.refused or self._accept(exchange)
            if isinstance(outcome, Refusal):
                self._answer(exchange, outcome)
                continue
            self._busy = True
            if not self._store.store(outcome, lambda stored, exchange=exchange: self._reported(exchange, stored)):
                self._busy = False
                self._answer(exchange, answers.UNAVAILABLE)

    def _accept(self, exchange: _Exchange) -> Accepted | Refusal:
        headers = exchange.headers
        request = Request(
            exchange.project,
            "/track",
            headers.get(b"content-type", b"").decode("latin-1"),
            time.time_ns() // 1_000_000,
            self._peer,
            headers.get(b"user-agent", b"").decode("utf-8", "replace"),
        )
        body = exchange.body[0] if len(exchange.body) == 1 else b"".join(exchange.body)
        return accept(body, request, os.urandom(10))

    def _reported(self, exchange: _Exchange, stored: bool) -> None:
        self._busy = False
        if stored:
            HITS_ACCEPTED.labels(exchange.project).inc()
            self._write(answers.NO_CONTENT if exchange.keep_alive else answers.NO_CONTENT_CLOSE, exchange.keep_alive)
        else:
            self._answer(exchange, answers.UNAVAILABLE)
        self._next()
        if not self._busy and self._transport is not None:
            self._transport.resume_reading()
            if self._draining:
                self._close()

    def _answer(self, exchange: _Exchange, refused: Refusal) -> None:
        HITS_REFUSED.labels(exchange.project, refused.code).inc()
        self._write(answers.refusal(refused, exchange.keep_alive, "POST"), exchange.keep_alive)

    def _write(self, answer: bytes, keep_alive: bool) -> None:
        self._deadline = time.monotonic() + IDLE_SECONDS
        if self._transport is not None:
            self._transport.write(answer)
            if not keep_alive:
                self._transport.close()
