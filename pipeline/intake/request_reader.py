"""Reads the requests of one HTTP connection with httptools' parser, and limits what the parser does not.

A request with the same head as the previous one (`known_head`) skips the parser.
"""

from __future__ import annotations

import time

from pipeline.intake import answers
from pipeline.intake.buffered_head import BufferedHead
from pipeline.intake.chunk_extensions import ChunkExtensions, may_begin_chunked
from pipeline.intake.connection_state import (
    AWAITING_REQUEST,
    BODY_SECONDS,
    DRAINING,
    HEADER_SECONDS,
    LINGERING,
    READING,
    READING_BODY,
    READING_HEAD,
    REFUSING,
    Lifecycle,
)
from pipeline.intake.exchange import Exchange
from pipeline.intake.flow_control import FlowControl
from pipeline.intake.head import Head, broken_head, plain_head, read_head
from pipeline.intake.known_head import KnownHead
from pipeline.intake.request_parser import RequestParser
from pipeline.intake.request_url import plain_path
from pipeline.intake.response_queue import ResponseQueue
from pipeline.intake.server_state import FORWARDED, ONCE, ServerState
from pipeline.stages.accept import Refusal

HEADER_BYTES = 8192


class RequestReader:
    """Turns the input of one HTTP connection into exchanges, and passes each to the response queue once."""

    __slots__ = (
        "_buffered",
        "_current",
        "_extensions",
        "_flow",
        "_head",
        "_header_bytes",
        "_header_names",
        "_headers",
        "_known_head",
        "_lifecycle",
        "_parser",
        "_peer",
        "_repeated_header",
        "_responses",
        "_server",
        "_url",
        "messages",
    )

    def __init__(
        self, server: ServerState, peer: str, lifecycle: Lifecycle, flow: FlowControl, responses: ResponseQueue
    ) -> None:
        self._server = server
        self._header_names = server.headers
        self._peer = peer
        self._lifecycle = lifecycle
        self._flow = flow
        self._responses = responses
        self._parser = RequestParser(self)
        self._extensions = ChunkExtensions()
        self._buffered = BufferedHead()
        self._known_head = KnownHead()
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._repeated_header = b""  # a header of ONCE that the head repeats
        self._head = Head(keep_alive=False)
        self._current: Exchange | None = None  # the request being read; only in READING_BODY
        self.messages = 0
        """Requests that the parser has read completely."""

    def receive(self, data: bytes) -> None:
        """Read a part of the input."""
        lifecycle = self._lifecycle
        state = lifecycle.state
        if state is AWAITING_REQUEST:
            exchange = self._known_head.exchange(data, self._server.version)
            if exchange is not None:  # it keeps the connection alive: no input is read after a head that does not
                if not self._responses.add(exchange):
                    self.end()
                return
        elif state is not READING_BODY and state is not READING_HEAD:
            return
        messages = self.messages
        may_have_extension = b";" in data or self._extensions.bytes_so_far
        read = self._read(data) if may_have_extension else self._parser.feed(data)
        if read is not True and lifecycle.state in READING:
            self.end(read or None)
        exchange = self._current
        if exchange is not None or lifecycle.state is READING_HEAD:
            body_bytes = 0 if exchange is None else exchange.received_bytes
            if self._buffered.grow(len(data), self._headers, self._header_bytes, body_bytes) > HEADER_BYTES:
                self.end()
            elif exchange is not None and exchange.answer is None:
                self._flow.hold(exchange, body_bytes)
                if self._flow.is_over_limit:
                    exchange.answer = answers.UNAVAILABLE
                    self._answer_early(exchange)
        elif state is AWAITING_REQUEST and self.messages == messages + 1:
            self._known_head.learn(data, self._head, self._server.version)

    def end(self, broken: Refusal | None = None) -> None:
        """Ignore further input; answer earlier requests, then `broken`, and close."""
        if self._current is not None:
            self._flow.hold(self._current, 0)
            self._current = None
        if broken is not None:
            self._answer_early(Exchange(Head(keep_alive=False, answer=broken)))
            return
        state = self._lifecycle.state
        if state is LINGERING:
            self._lifecycle.close()
        elif state is REFUSING or state in READING:
            self._lifecycle.enter(DRAINING)
            self._responses.close_if_done()

    def release(self) -> None:
        """Free the parser, when the connection is lost. It refers to its callbacks, and so to this reader."""
        del self._parser

    def _read(self, data: bytes) -> Refusal | bool:
        """As RequestParser.feed, for data that may hold a chunk extension."""
        in_head = self._lifecycle.state is READING_HEAD
        if in_head or b"transfer-encoding" in self._headers or may_begin_chunked(data):
            return self._extensions.feed(data, self._parser.feed, self._chunked_progress)
        return self._parser.feed(data)

    def _chunked_progress(self) -> object:
        """Return a value that changes with each callback inside a chunked body; None outside of one."""
        exchange = self._current
        if exchange is None or b"transfer-encoding" not in self._headers:
            return None
        return self.messages, self._header_bytes, exchange.received_bytes

    def _answer_early(self, exchange: Exchange) -> None:
        """Answer before the request is read completely; the connection closes after this answer."""
        exchange.keep_alive = False
        self._current = None
        self._lifecycle.enter(REFUSING)
        if not self._responses.add(exchange):
            self.end()

    # The parser's callbacks ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._lifecycle.state is not AWAITING_REQUEST:
            return
        self._lifecycle.enter(READING_HEAD)
        self._url = b""
        self._headers = {}
        self._header_bytes = 0
        self._repeated_header = b""
        self._lifecycle.deadline = time.monotonic() + HEADER_SECONDS

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._header_bytes += len(url)
        if self._header_bytes > HEADER_BYTES:  # called for each part of the URL
            self._end_at_limit()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes = header_bytes = self._header_bytes + len(name) + len(value) + 4
        name = name.lower()
        if name in self._header_names and self._lifecycle.state is READING_HEAD:  # trailers are only counted
            headers = self._headers
            if name in headers:
                if name in FORWARDED:
                    value = headers[name] + b"," + value
                elif name in ONCE:
                    self._repeated_header = name
            headers[name] = value
        if header_bytes > HEADER_BYTES:
            self._end_at_limit()

    def _end_at_limit(self) -> None:
        if self._lifecycle.state in READING:
            self.end()

    def on_headers_complete(self) -> None:
        lifecycle = self._lifecycle
        if lifecycle.state is not READING_HEAD:
            return
        lifecycle.deadline = time.monotonic() + BODY_SECONDS
        parser = self._parser
        method, version, keep_alive = parser.head()
        headers = self._headers
        if version != "1.1" or b"host" not in headers or self._repeated_header or b"transfer-encoding" in headers:
            broken = broken_head(version, headers, self._repeated_header)
            if broken is not None:
                path = plain_path(self._url.partition(b"?")[0])
                self._head = Head(False, method, path, broken, with_body=method != b"HEAD")
                self._answer_early(Exchange(self._head))
                return
        if b"upgrade" in headers and parser.upgrades and method != b"CONNECT":
            parser.without_offer = plain_head(method, self._url, version, keep_alive, headers)
            lifecycle.enter(AWAITING_REQUEST)  # the same head is read once more
            return
        self._head = head = read_head(self._server, self._peer, method, self._url, headers, keep_alive, version)
        exchange = Exchange(head)
        if head.expects_continue and exchange.answer is not None:
            self._answer_early(exchange)
            return
        self._current = exchange
        lifecycle.enter(READING_BODY)
        if head.expects_continue:
            self._responses.add_continue(exchange)

    def on_body(self, body: bytes) -> None:
        exchange = self._current
        if exchange is not None and not exchange.receive(body):
            self._answer_early(exchange)

    def on_message_complete(self) -> None:
        self.messages += 1
        exchange, self._current = self._current, None
        if exchange is not None:
            self._lifecycle.enter(AWAITING_REQUEST if exchange.keep_alive else DRAINING)
            if not self._responses.add(exchange):
                self.end()
        elif self._lifecycle.state is REFUSING:
            self._lifecycle.enter(DRAINING)
