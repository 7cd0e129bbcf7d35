"""One HTTP/1.1 connection, directly on httptools: without a framework a request costs only microseconds.

Requests of one connection are answered in order. Reading pauses while a request waits for Kafka, or while the client does not
read its answers. A request with the same head as the previous one (`known_head`) skips the parser.
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
_MAX_QUEUED_REQUESTS = 64


class IntakeProtocol(asyncio.Protocol):
    """Parses and authenticates requests, passes bodies to their endpoints, and answers once Kafka has acknowledged the hits."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._header_names = state.headers
        self._parser = RequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._repeated_header = b""  # a header of ONCE that the head repeats
        self._buffered = BufferedHead()
        self._held_bytes = 0  # its part of ServerState.held_bytes
        self._in_head = self._in_message = False
        self._head = Head(keep_alive=False)
        self._known_head = KnownHead()
        self._extensions = ChunkExtensions()
        self._messages = 0
        self._current: Exchange | None = None
        self._queue: deque[Exchange] = deque()
        self._in_flight: Exchange | None = None  # the exchange that waits for its turn or for its store
        self._reading_paused = False
        self._congested = False  # the write buffer is full: the client does not read its answers
        self._draining = False
        self._continue_due = False  # 100 Continue is still to be sent for `_current`
        self._reading_ended = False  # further input is ignored
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
        if self._in_flight is not None and not self._in_flight.records:
            self._in_flight.cancel_wait()  # still waiting for its turn
        self._state.connections.discard(self)
        del self._parser  # breaks the reference cycle, so both are freed now

    def eof_received(self) -> bool:
        """Return True to keep the connection open: a client that ended its input may still wait for answers."""
        self._end_reading()
        return self._has_unanswered

    def data_received(self, data: bytes) -> None:
        self._receive(data)
        if self._draining:  # closing between two requests of one packet would lose the second
            self._close_if_drained()

    def _receive(self, data: bytes) -> None:
        if self._reading_ended:
            return
        was_in_message, messages = self._in_message, self._messages
        if not was_in_message:
            exchange = self._known_head.exchange(data, self._state.version)
            if exchange is not None:
                self._finish(exchange)
                return
        may_have_extension = b";" in data or self._extensions.bytes_so_far
        read = self._read(data) if may_have_extension else self._parser.feed(data)
        if read is not True and not self._reading_ended:
            self._end_reading(read or None)
        if self._reading_ended:
            return
        exchange = self._current
        if self._in_head or exchange is not None:
            body_bytes = 0 if exchange is None else exchange.received_bytes
            if self._buffered.grow(len(data), self._headers, self._header_bytes, body_bytes) > HEADER_BYTES:
                self._end_reading()
            elif exchange is not None and exchange.answer is None:
                self._count_held_bytes(exchange, body_bytes)
                if self._state.held_bytes > HELD_BYTES:
                    exchange.answer = answers.UNAVAILABLE
                    self._finish_early(exchange)
        elif not was_in_message and self._messages == messages + 1:
            self._known_head.learn(data, self._head, self._state.version)

    def _read(self, data: bytes) -> Refusal | bool:
        """As RequestParser.feed, for data that may hold a chunk extension."""
        if self._in_head or b"transfer-encoding" in self._headers or may_begin_chunked(data):
            return self._extensions.feed(data, self._parser.feed, self._chunked_progress)
        return self._parser.feed(data)

    def _chunked_progress(self) -> object:
        """Return a value that changes with each callback inside a chunked body; None outside of one."""
        exchange = self._current
        if exchange is None or self._in_head or b"transfer-encoding" not in self._headers:
            return None
        return self._messages, self._header_bytes, exchange.received_bytes

    def sweep(self, now: float) -> None:
        """Abort the connection if its deadline for sending or reading has passed; called about twice a second."""
        if now > self._deadline and self._in_flight is None:
            self.abort()  # close() would wait until the client has read

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        if self._in_flight is None:
            self._resume()

    def drain(self) -> None:
        """Answer the requests in flight, then close."""
        self._draining = True
        self._close_if_drained()

    def _end_reading(self, broken: Refusal | None = None) -> None:
        """Ignore further input; answer earlier requests, then `broken`, and close."""
        self._reading_ended = True
        if self._current is not None:
            self._count_held_bytes(self._current, 0)
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
        """Whether a request is being read or has no answer yet."""
        return self._has_unanswered or self._in_head or self._current is not None

    @property
    def _has_unanswered(self) -> bool:
        return self._in_flight is not None or bool(self._queue)

    @property
    def idle_since(self) -> float | None:
        """When it became idle, by time.monotonic(); None while busy. Before its first request: earlier by IDLE_SECONDS."""
        if self.busy or self._congested or self._transport is None:
            return None
        return self._deadline - (IDLE_SECONDS if self._messages else IDLE_SECONDS + HEADER_SECONDS)

    def abort(self) -> None:
        """Close now; unread answers are lost."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # The parser's callbacks ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._reading_ended:
            return
        self._url = b""
        self._headers = {}
        self._header_bytes = 0
        self._repeated_header = b""
        self._in_head = self._in_message = True
        self._deadline = time.monotonic() + HEADER_SECONDS

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._header_bytes += len(url)
        if self._header_bytes > HEADER_BYTES and not self._reading_ended:  # called for each part of the URL
            self._end_reading()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes = header_bytes = self._header_bytes + len(name) + len(value) + 4
        name = name.lower()
        if name in self._header_names and self._in_head:  # trailers are only counted
            headers = self._headers
            if name in headers:
                if name in FORWARDED:
                    value = headers[name] + b"," + value
                elif name in ONCE:
                    self._repeated_header = name
            headers[name] = value
        if header_bytes > HEADER_BYTES and not self._reading_ended:
            self._end_reading()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._reading_ended:
            return
        self._deadline = time.monotonic() + BODY_SECONDS
        parser = self._parser
        method, version, keep_alive = parser.head()
        headers = self._headers
        if version != "1.1" or b"host" not in headers or self._repeated_header or b"transfer-encoding" in headers:
            broken = broken_head(version, headers, self._repeated_header)
            if broken is not None:
                path = plain_path(self._url.partition(b"?")[0])
                self._head = Head(False, method, path, broken, with_body=method != b"HEAD")
                self._current = exchange = Exchange(self._head)
                self._finish_early(exchange)
                return
        if b"upgrade" in headers and parser.upgrades and method != b"CONNECT":
            parser.without_offer = plain_head(method, self._url, version, keep_alive, headers)
            return
        self._head = read_head(self._state, self._peer, method, self._url, headers, keep_alive, version)
        self._current = exchange = Exchange(self._head)
        if self._head.expects_continue:
            self._continue_due = exchange.answer is None
            if exchange.answer is not None:
                self._finish_early(exchange)
            elif not self._has_unanswered:
                self._send_continue()

    def _send_continue(self) -> None:
        """Send 100 Continue; only once all earlier requests are answered."""
        self._continue_due = False
        current = self._current
        if current is None or not current.head.expects_continue or current.received_bytes:
            return  # the body came without waiting
        if self._transport is not None:
            self._transport.write(answers.CONTINUE)

    def on_body(self, body: bytes) -> None:
        exchange = self._current
        if exchange is not None and not exchange.receive(body):
            self._finish_early(exchange)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._messages += 1
        exchange, self._current = self._current, None
        if exchange is not None and not exchange.finished:
            self._finish(exchange)

    # Answering -------------------------------------------------------------------------------------------------------

    def _finish_early(self, exchange: Exchange) -> None:
        """Answer before the body is complete; the connection closes after it."""
        if not exchange.finished:
            exchange.keep_alive = False
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        exchange.finished = True
        self._reading_ended |= not exchange.keep_alive  # input after the last request is ignored
        if self._in_flight is None and not self._queue and not self._congested:
            self._decide(exchange)
            return
        self._queue.append(exchange)
        self._count_held_bytes(exchange, exchange.received_bytes)
        self._deadline = time.monotonic() + BODY_SECONDS
        if len(self._queue) > _MAX_QUEUED_REQUESTS:
            self._end_reading()
        elif self._transport is not None and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _count_held_bytes(self, exchange: Exchange, held_bytes: int) -> None:
        """Count `held_bytes` of this exchange against HELD_BYTES, replacing its previous count."""
        if self._transport is not None:
            change = held_bytes - exchange.held_bytes
            exchange.held_bytes = held_bytes
            self._held_bytes += change
            self._state.held_bytes += change

    def _decide(self, exchange: Exchange) -> None:
        traffic = exchange.traffic
        if traffic is None:
            # For a smaller body admission is checked after parsing.
            needs_admission = exchange.head.body_bytes != BODY_BYTES
        else:
            needs_admission = traffic.limit is not None or not traffic.share.is_free
        if needs_admission:
            admitted = exchange.answer is not None or self._state.admission.admits(exchange, self._take_turn)
            if not admitted and self._wait_for_turn(exchange):
                return
        self._accept(exchange)

    def _accept(self, exchange: Exchange) -> None:
        if exchange.held_bytes:
            self._count_held_bytes(exchange, 0)
        outcome = exchange.accept()
        if outcome is None:
            self._in_flight = exchange
            exchange.wait_first(self._take_turn)
        elif isinstance(outcome, Refusal):
            self._refuse(exchange, outcome)
        elif isinstance(outcome, bytes):
            self._write(outcome, exchange.keep_alive)
        else:
            records = (outcome,) if isinstance(outcome, Accepted) else outcome
            if exchange.traffic is None and records:
                admitted = self._state.admission.admits(exchange, self._take_turn, sender_of(records[0]))
                if not admitted and self._wait_for_turn(exchange):
                    return
                if isinstance(exchange.answer, Refusal):
                    self._refuse(exchange, exchange.answer)
                    return
            self._in_flight = exchange
            exchange.store(records, self._state.store, self._answer)

    def _wait_for_turn(self, exchange: Exchange) -> bool:
        """Let `exchange` wait for its turn. Return False, with 503 as its answer, if HELD_BYTES is exceeded."""
        self._count_held_bytes(exchange, exchange.received_bytes)
        if self._state.held_bytes > HELD_BYTES:
            exchange.cancel_wait()
            exchange.answer = answers.UNAVAILABLE
            return False
        self._in_flight = exchange
        return True

    def _take_turn(self, is_late: bool) -> int:
        """Continue the exchange that waited for its turn, or answer 503 if it waited too long."""
        exchange, self._in_flight = self._in_flight, None
        if exchange is None or self._transport is None:
            return 0
        if is_late:
            exchange.answer = answers.UNAVAILABLE
        elif exchange.traffic is not None and exchange.traffic.limit is not None:
            self._state.admission.is_within_limit(exchange, exchange.traffic.limit)
        self._accept(exchange)
        if self._in_flight is None:
            self._after_answer()
        return exchange.records or STEP_MESSAGES

    def _answer(self, exchange: Exchange) -> None:
        self._in_flight = None
        if not exchange.stored:
            self._refuse(exchange, answers.UNAVAILABLE)
        else:
            if exchange.records:
                accepted = exchange.head.accepted or HITS_ACCEPTED.labels(exchange.project)
                accepted.inc(exchange.records)
            self._write(exchange.head.stored, exchange.keep_alive)
        self._after_answer()

    def _after_answer(self) -> None:
        if self._queue or self._reading_paused or self._draining or self._continue_due:
            self._resume()

    def _resume(self) -> None:
        while self._queue and self._in_flight is None and not self._congested:
            self._decide(self._queue.popleft())
        if not self._has_unanswered and self._transport is not None and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._continue_due and not self._has_unanswered:
            self._send_continue()
        self._close_if_drained()

    def _refuse(self, exchange: Exchange, why: Refusal) -> None:
        head, refused = exchange.head, self._state.refused
        project = exchange.project or why.project
        HITS_REFUSED.labels(project, why.code).inc()
        refused.add(why, head.method, head.path, project, lambda: exchange.body)
        answer = answers.refusal(why, exchange.keep_alive, head.origin, with_body=head.with_body)
        self._write(answer, exchange.keep_alive)

    def _write(self, answer: bytes, keep_alive: bool) -> None:
        # A part of the next request may have arrived already.
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
            # Closing now would reset the connection while the client still sends, so it could not read the answer.
            self._transport.write_eof()
            self._deadline = time.monotonic() + LINGER_SECONDS
