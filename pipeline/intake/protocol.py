"""One HTTP/1.1 connection, bare on httptools: a request costs microseconds, not a framework.

Requests of one connection are answered in order; while one waits for Kafka, nothing more is read from its socket.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import httptools

from pipeline.codec.hit_text import BODY_BYTES
from pipeline.intake import answers
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoint, Endpoints
from pipeline.stages.accept import Accepted, Refusal, Request
from pipeline.telemetry import HITS_ACCEPTED, HITS_REFUSED

HEADER_BYTES = 8192
HEADER_SECONDS = 5.0
BODY_SECONDS = 10.0
IDLE_SECONDS = 75.0
MAX_CONNECTIONS = 10_000
_WAITING_REQUESTS = 64
_GZIP = 31  # zlib's window bits for the gzip format
_LISTS = (b"x-forwarded-for", b"forwarded")  # headers that proxies add to line by line
_DOCUMENT_PATH = b"/openapi.json"
_READ_ONLY = (b"GET", b"HEAD")
_DOCUMENT_ALLOW = "GET, HEAD, OPTIONS"


class Store(Protocol):
    """Where accepted hits go."""

    def store(self, hit: Accepted, report: Any) -> bool:
        """False when full; else `report(stored)` is called on the loop."""


@dataclass(slots=True)
class Door:
    """What all connections of a process share. `hide_address` takes away what may not be stored."""

    endpoints: Endpoints
    store: Store
    document: bytes
    addresses: ClientAddress
    hide_address: Callable[[str], str]
    connections: set[IntakeProtocol] = field(default_factory=set)


@dataclass(slots=True)
class _Exchange:
    """One request under way. `answer` is known before the body is read where the headers suffice."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    url: bytes = b""
    query: bytes = b""
    endpoint: Endpoint | None = None
    project: str = ""
    body: list[bytes] = field(default_factory=list)
    body_bytes: int = 0
    inflate: Any = None
    answer: Refusal | bytes | None = None
    keep_alive: bool = True
    finished: bool = False

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def allow(self) -> str:
        """The methods of the path."""
        return self.endpoint.allow if self.endpoint is not None else _DOCUMENT_ALLOW

    @property
    def origin(self) -> str:
        """The page that asks, where pages may."""
        if self.endpoint is None or not self.endpoint.cross_origin:
            return ""
        return self.header(b"origin") or ""


class _Acknowledgements:
    """Waits for all records of one request."""

    __slots__ = ("_done", "_missing", "_stored")

    def __init__(self, count: int, done: Callable[[bool], None]) -> None:
        self._missing = count
        self._stored = True
        self._done = done

    def __call__(self, stored: bool) -> None:
        self._stored &= stored
        self._missing -= 1
        if not self._missing:
            self._done(self._stored)


class IntakeProtocol(asyncio.Protocol):
    """Parses, authenticates, hands the body to its endpoint, answers after the acknowledgement."""

    def __init__(self, door: Door) -> None:
        self._door = door
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
        self._door.connections.add(self)
        if len(self._door.connections) > MAX_CONNECTIONS:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._door.connections.discard(self)

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
        if not self.busy:
            self._close()

    @property
    def busy(self) -> bool:
        """Is an answer owed, or a request being read?"""
        return self._busy or bool(self._ready) or self._current is not None

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
        name = name.lower()
        headers = self._current.headers
        if name in _LISTS and name in headers:
            value = headers[name] + b"," + value
        headers[name] = value
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
        exchange.answer = self._answer_to_head(exchange)
        if exchange.headers.get(b"expect", b"").lower() == b"100-continue":
            if exchange.answer is not None:
                self._finish_unread(exchange)
            elif self._transport is not None:
                self._transport.write(answers.CONTINUE)

    def _answer_to_head(self, exchange: _Exchange) -> Refusal | bytes | None:
        """What the headers alone decide; None: read the body."""
        method = self._parser.get_method()
        try:
            url = httptools.parse_url(exchange.url)
        except httptools.HttpParserInvalidURLError:
            is_star = exchange.url == b"*" and method == b"OPTIONS"
            return answers.preflight("GET, POST, OPTIONS", "") if is_star else answers.NOT_FOUND
        path = url.path
        if path == _DOCUMENT_PATH:
            if method == b"OPTIONS":
                return answers.preflight(_DOCUMENT_ALLOW, "")
            if method not in _READ_ONLY:
                return answers.method_not_allowed(_DOCUMENT_ALLOW)
            return answers.document(self._door.document, exchange.keep_alive, with_body=method == b"GET")
        exchange.endpoint = endpoint = self._door.endpoints.find(path)
        if endpoint is None:
            return answers.NOT_FOUND
        if method == b"OPTIONS":
            return answers.preflight(endpoint.allow, exchange.origin)
        if method not in endpoint.methods:
            return answers.method_not_allowed(endpoint.allow)
        project = endpoint.authorize(exchange.header(b"authorization"), path.rpartition(b"/")[2].decode("latin-1"))
        if isinstance(project, Refusal):
            return project
        exchange.project = project
        exchange.query = url.query or b""
        encoding = exchange.headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            if encoding.lower() not in (b"gzip", b"x-gzip"):
                return answers.BAD_GZIP
            exchange.inflate = zlib.decompressobj(_GZIP)
        return None

    def on_body(self, body: bytes) -> None:
        exchange = self._current
        assert exchange is not None
        limit = exchange.endpoint.body_bytes if exchange.endpoint is not None else BODY_BYTES
        if exchange.inflate is not None and exchange.answer is None:
            try:
                # Never more than the limit and one byte, whatever the bomb holds.
                body = exchange.inflate.decompress(body, limit + 1 - exchange.body_bytes)
            except zlib.error:
                exchange.answer = answers.BAD_GZIP
                body = b""
        exchange.body_bytes += len(body)
        if exchange.body_bytes > limit:
            exchange.answer = exchange.answer or answers.too_large(limit)
            self._finish_unread(exchange)
        elif exchange.answer is None:
            exchange.body.append(body)

    def on_message_complete(self) -> None:
        exchange, self._current = self._current, None
        if exchange is None or exchange.finished:
            return
        if exchange.inflate is not None and exchange.answer is None and not exchange.inflate.eof:
            exchange.answer = answers.BAD_GZIP
        self._finish(exchange)

    # Answering -------------------------------------------------------------------------------------------------------

    def _finish_unread(self, exchange: _Exchange) -> None:
        """Answer without reading the rest, after which the connection can't be used again."""
        if not exchange.finished:
            exchange.keep_alive = False
            self._finish(exchange)

    def _finish(self, exchange: _Exchange) -> None:
        exchange.finished = True
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
            outcome = exchange.answer or self._accept(exchange)
            if isinstance(outcome, Refusal):
                self._refuse(exchange, outcome)
            elif isinstance(outcome, bytes):
                self._write(outcome, exchange.keep_alive)
            else:
                self._store(exchange, [outcome] if isinstance(outcome, Accepted) else outcome)

    def _accept(self, exchange: _Exchange) -> Accepted | Sequence[Accepted] | Refusal:
        endpoint = exchange.endpoint
        assert endpoint is not None
        door = self._door
        address = door.addresses.read(self._peer, exchange.header(b"x-forwarded-for"), exchange.header(b"forwarded"))
        request = Request(
            exchange.project,
            endpoint.name,
            exchange.header(b"content-type") or "",
            time.time_ns() // 1_000_000,
            door.hide_address(address),
            exchange.headers.get(b"user-agent", b"").decode("utf-8", "replace"),
            exchange.query.decode("utf-8", "replace"),
        )
        body = exchange.body[0] if len(exchange.body) == 1 else b"".join(exchange.body)
        return endpoint.accept(body, request, os.urandom)

    def _store(self, exchange: _Exchange, records: Sequence[Accepted]) -> None:
        self._busy = True

        def reported(stored: bool) -> None:
            self._reported(exchange, records, stored)

        if not records:
            reported(True)
            return
        report = reported if len(records) == 1 else _Acknowledgements(len(records), reported)
        for record in records:
            if not self._door.store.store(record, report):
                report(False)

    def _reported(self, exchange: _Exchange, records: Sequence[Accepted], stored: bool) -> None:
        self._busy = False
        if stored:
            if records:
                HITS_ACCEPTED.labels(records[0].project).inc(len(records))
            assert exchange.endpoint is not None
            answer = answers.PIXEL if b"pixel=1" in exchange.query.split(b"&") else exchange.endpoint.stored
            self._write(answers.stored(answer, exchange.keep_alive, exchange.origin), exchange.keep_alive)
        else:
            self._refuse(exchange, answers.UNAVAILABLE)
        self._next()
        if not self._busy and self._transport is not None:
            self._transport.resume_reading()
            if self._draining:
                self._close()

    def _refuse(self, exchange: _Exchange, why: Refusal) -> None:
        HITS_REFUSED.labels(exchange.project, why.code).inc()
        self._write(answers.refusal(why, exchange.keep_alive, exchange.allow, exchange.origin), exchange.keep_alive)

    def _write(self, answer: bytes, keep_alive: bool) -> None:
        self._deadline = time.monotonic() + IDLE_SECONDS
        if self._transport is not None:
            self._transport.write(answer)
            if not keep_alive:
                self._transport.close()
