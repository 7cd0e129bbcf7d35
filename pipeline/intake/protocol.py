"""One HTTP/1.1 connection, bare on httptools: a request costs microseconds, not a framework.

Requests of one connection are answered in order; while one waits for Kafka, or its answers for a client that does not read
them, nothing more is read from its socket. A request whose head is the one before (`known_head`) does not go through the
parser.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import cast

from pipeline.codec.hit_text import BODY_BYTES
from pipeline.codec.ip_address import plain_ip
from pipeline.intake import answers
from pipeline.intake.buffered_head import BufferedHead
from pipeline.intake.chunk_extensions import ChunkExtensions, may_begin_chunked
from pipeline.intake.exchange import Exchange
from pipeline.intake.head import Head, broken_head, plain_head, read_head
from pipeline.intake.known_head import KnownHead
from pipeline.intake.request_parser import RequestParser
from pipeline.intake.request_url import plain_path
from pipeline.intake.server_state import FORWARDED, HELD_BYTES, ONCE, ServerState
from pipeline.stages.accept import Accepted, Refusal, sender_of
from pipeline.stages.accept.segment import STEP_MESSAGES
from pipeline.telemetry import HITS_ACCEPTED, HITS_REFUSED

HEADER_BYTES = 8192
HEADER_SECONDS = 5.0
BODY_SECONDS = 10.0
IDLE_SECONDS = 75.0
LINGER_SECONDS = 5.0
_WAITING_REQUESTS = 64


class IntakeProtocol(asyncio.Protocol):
    """Parses, authenticates, hands the body to its endpoint, answers after the acknowledgement."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._wanted = state.headers
        self._parser = RequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._twice = b""  # a header that may stand once, and does not
        self._buffered = BufferedHead()
        self._held_bytes = 0  # of the state's
        self._in_head = self._in_message = False
        self._head = Head(keep_alive=False)
        self._known_head = KnownHead()
        self._extensions = ChunkExtensions()
        self._messages = 0
        self._current: Exchange | None = None
        self._ready: deque[Exchange] = deque()
        self._stored_for: Exchange | None = None  # the exchange that waits for its store
        self._paused = False
        self._congested = False  # the client does not read its answers
        self._draining = False
        self._continue_due = False  # the client of `_current` waits for 100 Continue
        self._ended = False  # nothing more is read
        self._deadline = time.monotonic() + HEADER_SECONDS

    # The socket ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._peer = plain_ip(peer[0]) if isinstance(peer, tuple) else ""
        self._state.connections.add(self, self._peer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.held_bytes -= self._held_bytes
        self._transport = None
        if self._stored_for is not None and not self._stored_for.records:
            self._stored_for.forget()  # it only waits for its turn
        self._state.connections.discard(self)
        del self._parser  # which knows this object: without a cycle, both go now

    def eof_received(self) -> bool:
        """A client that has said all may still wait for its answers: true keeps the connection."""
        self._end()
        return self._owing

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        begun, messages = self._in_message, self._messages
        if not begun:
            exchange = self._known_head.exchange(data, self._state.version)
            if exchange is not None:
                self._finish(exchange)
                return
        may_extend = b";" in data or self._extensions.bytes_so_far
        read = self._read(data) if may_extend else self._parser.feed(data)
        if read is not True and not self._ended:
            self._end(read or None)
        exchange = self._current
        if self._in_head or exchange is not None:
            body_bytes = 0 if exchange is None else exchange.received_bytes
            if self._buffered.grow(len(data), self._headers, self._header_bytes, body_bytes) > HEADER_BYTES:
                self._end()
            elif exchange is not None and exchange.answer is None:
                self._hold(exchange, body_bytes)
                if self._state.held_bytes > HELD_BYTES:
                    exchange.answer = answers.UNAVAILABLE
                    self._finish_unread(exchange)
        elif not begun and self._messages == messages + 1:
            self._known_head.learn(data, self._head, self._state.version)

    def _read(self, data: bytes) -> Refusal | bool:
        """As RequestParser.feed, where a chunk may have an extension."""
        if self._in_head or b"transfer-encoding" in self._headers or may_begin_chunked(data):
            return self._extensions.feed(data, self._parser.feed, self._chunked_progress)
        return self._parser.feed(data)

    def _chunked_progress(self) -> object:
        """Return what changes with each callback while a chunked body is read; None outside of one."""
        exchange = self._current
        if exchange is None or self._in_head or b"transfer-encoding" not in self._headers:
            return None
        return self._messages, self._header_bytes, exchange.received_bytes

    def sweep(self, now: float) -> None:
        """End what is too slow, in sending or in reading; called about twice a second."""
        if now > self._deadline and self._stored_for is None:
            self.abort()  # to close would wait until the client has read

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        if self._stored_for is None:
            self._go_on()

    def drain(self) -> None:
        """Answer what is under way, then close."""
        self._draining = True
        self._close_if_drained()

    def _end(self, broken: Refusal | None = None) -> None:
        """Read nothing more; what came before is answered, and then what is broken."""
        self._ended = True
        if self._current is not None:
            self._hold(self._current, 0)
        self._in_head, self._current = False, None
        if broken is not None:
            self._current = Exchange(Head(keep_alive=False, answer=broken))
            self._finish(self._current)
        else:
            self._draining = True
            self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self._draining and not self.busy:
            self._close()

    @property
    def busy(self) -> bool:
        """Is an answer owed, or a request being read?"""
        return self._owing or self._in_head or self._current is not None

    @property
    def _owing(self) -> bool:
        return self._stored_for is not None or bool(self._ready)

    @property
    def idle_since(self) -> float | None:
        """Since when nothing happens on it; before its first request as if for 75 seconds more. None while something does."""
        if self.busy or self._congested or self._transport is None:
            return None
        return self._deadline - (IDLE_SECONDS if self._messages else IDLE_SECONDS + HEADER_SECONDS)

    def abort(self) -> None:
        """Close now; answers that the client has not read are lost."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # The parser's callbacks ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._ended:
            return
        self._url = b""
        self._headers = {}
        self._header_bytes = 0
        self._twice = b""
        self._in_head = self._in_message = True
        self._deadline = time.monotonic() + HEADER_SECONDS

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._header_bytes += len(url)
        if self._header_bytes > HEADER_BYTES:  # the parser tells of each part
            self._end()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes = header_bytes = self._header_bytes + len(name) + len(value) + 4
        name = name.lower()
        if name in self._wanted and self._in_head:  # what comes behind the body is only counted
            headers = self._headers
            if name in headers:
                if name in FORWARDED:
                    value = headers[name] + b"," + value
                elif name in ONCE:
                    self._twice = name
            headers[name] = value
        if header_bytes > HEADER_BYTES:
            self._end()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._ended:
            return
        self._deadline = time.monotonic() + BODY_SECONDS
        parser = self._parser
        method, version, keep_alive = parser.head()
        headers = self._headers
        if version != "1.1" or b"host" not in headers or self._twice or b"transfer-encoding" in headers:
            broken = broken_head(version, headers, self._twice)
            if broken is not None:
                path = plain_path(self._url.partition(b"?")[0])
                self._head = Head(False, method, path, broken, with_body=method != b"HEAD")
                self._current = exchange = Exchange(self._head)
                self._finish_unread(exchange)
                return
        if b"upgrade" in headers and parser.upgrades and method != b"CONNECT":
            parser.without_offer = plain_head(method, self._url, version, keep_alive, headers)
            return
        self._head = read_head(self._state, self._peer, method, self._url, headers, keep_alive, version)
        self._current = exchange = Exchange(self._head)
        if self._head.expects_continue:
            self._continue_due = exchange.answer is None
            if exchange.answer is not None:
                self._finish_unread(exchange)
            elif not self._owing:
                self._continue()

    def _continue(self) -> None:
        """Tell a client that waits for it to send its body; only once nothing is owed to its earlier requests."""
        self._continue_due = False
        current = self._current
        if current is None or not current.head.expects_continue or current.received_bytes:
            return  # it has sent its body unasked
        if self._transport is not None:
            self._transport.write(answers.CONTINUE)

    def on_body(self, body: bytes) -> None:
        exchange = self._current
        if exchange is not None and not exchange.receive(body):
            self._finish_unread(exchange)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._messages += 1
        exchange, self._current = self._current, None
        if exchange is not None and not exchange.finished:
            self._finish(exchange)

    # Answering -------------------------------------------------------------------------------------------------------

    def _finish_unread(self, exchange: Exchange) -> None:
        """Answer without reading the rest, after which the connection can't be used again."""
        if not exchange.finished:
            exchange.keep_alive = False
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        exchange.finished = True
        self._ended |= not exchange.keep_alive  # whatever stands behind the last request of a connection is none
        if self._stored_for is None and not self._ready and not self._congested:
            self._decide(exchange)
            if self._draining:
                self._close_if_drained()
            return
        self._ready.append(exchange)
        self._hold(exchange, exchange.received_bytes)
        self._deadline = time.monotonic() + BODY_SECONDS
        if len(self._ready) > _WAITING_REQUESTS:
            self._end()
        elif self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _hold(self, exchange: Exchange, held_bytes: int) -> None:
        """So much of it counts against the door's limit, until it is decided or the connection is lost."""
        if self._transport is not None:
            change = held_bytes - exchange.held_bytes
            exchange.held_bytes = held_bytes
            self._held_bytes += change
            self._state.held_bytes += change

    def _decide(self, exchange: Exchange) -> None:
        traffic = exchange.traffic
        if traffic is None:
            must_ask = exchange.head.body_bytes != BODY_BYTES  # a smaller body is asked for once it is read
        else:
            must_ask = traffic.limit is not None or not traffic.share.is_free
        if must_ask:
            admitted = exchange.answer is not None or self._state.admission.admits(exchange, self._turn)
            if not admitted and self._waits(exchange):
                return
        self._accept(exchange)

    def _accept(self, exchange: Exchange) -> None:
        if exchange.held_bytes:
            self._hold(exchange, 0)
        outcome = exchange.accept()
        if outcome is None:
            self._stored_for = exchange
            exchange.wait_first(self._turn)
        elif isinstance(outcome, Refusal):
            self._refuse(exchange, outcome)
        elif isinstance(outcome, bytes):
            self._write(outcome, exchange.keep_alive)
        else:
            records = (outcome,) if isinstance(outcome, Accepted) else outcome
            if exchange.traffic is None and records:
                admitted = self._state.admission.admits(exchange, self._turn, sender_of(records[0]))
                if not admitted and self._waits(exchange):
                    return
                if isinstance(exchange.answer, Refusal):
                    self._refuse(exchange, exchange.answer)
                    return
            self._stored_for = exchange
            exchange.store(records, self._state.store, self._answer)

    def _waits(self, exchange: Exchange) -> bool:
        """Let `exchange` wait for its turn. False where too much waits on all connections: it is answered."""
        self._hold(exchange, exchange.received_bytes)
        if self._state.held_bytes > HELD_BYTES:
            exchange.forget()
            exchange.answer = answers.UNAVAILABLE
            return False
        self._stored_for = exchange
        return True

    def _turn(self, is_late: bool) -> int:
        """The exchange that waits for its turn has it, or has waited for too long."""
        exchange, self._stored_for = self._stored_for, None
        if exchange is None or self._transport is None:
            return 0
        if is_late:
            exchange.answer = answers.UNAVAILABLE
        elif exchange.traffic is not None and exchange.traffic.limit is not None:
            self._state.admission.is_within_limit(exchange, exchange.traffic.limit)
        self._accept(exchange)
        if self._stored_for is None:
            self._settled()
        return exchange.records or STEP_MESSAGES

    def _answer(self, exchange: Exchange) -> None:
        self._stored_for = None
        if not exchange.stored:
            self._refuse(exchange, answers.UNAVAILABLE)
        else:
            if exchange.records:
                accepted = exchange.head.accepted or HITS_ACCEPTED.labels(exchange.project)
                accepted.inc(exchange.records)
            self._write(exchange.head.stored, exchange.keep_alive)
        self._settled()

    def _settled(self) -> None:
        if self._ready or self._paused or self._draining or self._continue_due:
            self._go_on()

    def _go_on(self) -> None:
        while self._ready and self._stored_for is None and not self._congested:
            self._decide(self._ready.popleft())
        if not self._owing and self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._continue_due and not self._owing:
            self._continue()
        self._close_if_drained()

    def _refuse(self, exchange: Exchange, why: Refusal) -> None:
        head, refused = exchange.head, self._state.refused
        project = exchange.project or why.project
        HITS_REFUSED.labels(project, why.code).inc()
        refused.add(why, head.method, head.path, project, lambda: exchange.body)
        answer = answers.refusal(why, exchange.keep_alive, head.origin, with_body=head.with_body)
        self._write(answer, exchange.keep_alive)

    def _write(self, answer: bytes, keep_alive: bool) -> None:
        # The next request may be half here already.
        idle = self._current is None and not self._in_head
        self._deadline = time.monotonic() + (IDLE_SECONDS if idle else BODY_SECONDS)
        if self._transport is None:
            return
        self._transport.write(self._state.dated(answer))
        if keep_alive:
            return
        unread, self._current = self._current, None
        if unread is None or self._draining:
            self._transport.close()
        else:
            # To close now would reset the connection under a client that still sends, and it would not see why.
            self._transport.write_eof()
            self._deadline = time.monotonic() + LINGER_SECONDS
