"""Answers the requests of one HTTP connection in their order, each once, and closes the connection after the last one."""

from __future__ import annotations

import time
from collections import deque

from pipeline.codec.hit_text import BODY_BYTES
from pipeline.intake import answers
from pipeline.intake.connection_state import (
    AWAITING_REQUEST,
    BODY_SECONDS,
    DRAINING,
    IDLE_SECONDS,
    LINGER_SECONDS,
    LINGERING,
    READING_BODY,
    REFUSING,
    Lifecycle,
)
from pipeline.intake.exchange import Exchange
from pipeline.intake.flow_control import FlowControl
from pipeline.intake.server_state import ServerState
from pipeline.stages.accept import Accepted, Refusal, sender_of
from pipeline.stages.accept.segment import STEP_MESSAGES
from pipeline.telemetry import HITS_ACCEPTED, HITS_REFUSED

_MAX_QUEUED_REQUESTS = 64


class ResponseQueue:
    """The unanswered requests of one HTTP connection. One is in flight; those behind it are queued, and reading pauses."""

    __slots__ = ("_awaiting_continue", "_flow", "_in_flight", "_lifecycle", "_queue", "_server", "is_stopping")

    def __init__(self, server: ServerState, lifecycle: Lifecycle, flow: FlowControl) -> None:
        self._server = server
        self._lifecycle = lifecycle
        self._flow = flow
        self._in_flight: Exchange | None = None  # the exchange that waits for its turn or for its store
        self._queue: deque[Exchange] = deque()
        self._awaiting_continue: Exchange | None = None  # the request being read, if 100 Continue is still to be sent
        self.is_stopping = False
        """Whether the process stops, so that the connection closes once no request is open."""

    @property
    def is_in_flight(self) -> bool:
        """Whether an answer depends on the turn of its project or on the store, and not on the client."""
        return self._in_flight is not None

    @property
    def has_unanswered(self) -> bool:
        """Whether a request that is read has no answer yet."""
        return self._in_flight is not None or bool(self._queue)

    def add(self, exchange: Exchange) -> bool:
        """Answer `exchange` after all earlier ones. Return False if the queue is full, so that nothing more may be read."""
        if self._in_flight is None and not self._queue and not self._flow.is_writing_paused:
            self._decide(exchange)
            return True
        self._awaiting_continue = None  # its body came without waiting
        self._queue.append(exchange)
        self._flow.hold(exchange, exchange.received_bytes)
        self._lifecycle.deadline = time.monotonic() + BODY_SECONDS
        if len(self._queue) > _MAX_QUEUED_REQUESTS:
            return False
        self._flow.pause_reading()
        return True

    def add_continue(self, exchange: Exchange) -> None:
        """Send 100 Continue after all earlier answers, unless the body of `exchange` arrives before."""
        self._awaiting_continue = exchange
        if not self.has_unanswered:
            self._send_continue(exchange)

    def _send_continue(self, exchange: Exchange) -> None:
        self._awaiting_continue = None
        transport = self._lifecycle.transport
        if transport is not None and self._lifecycle.state is READING_BODY and not exchange.received_bytes:
            transport.write(answers.CONTINUE)

    def resume(self) -> None:
        """Answer queued requests until one is in flight; if none is left, read again, or close if nothing more is due."""
        while self._queue and self._in_flight is None and not self._flow.is_writing_paused:
            self._decide(self._queue.popleft())
        if self.has_unanswered:
            return
        self._flow.resume_reading()
        if self._awaiting_continue is not None:
            self._send_continue(self._awaiting_continue)
        self.close_if_done()

    def stop(self) -> None:
        """Answer the open requests, then close."""
        self.is_stopping = True
        self.close_if_done()

    def close_if_done(self) -> None:
        """Close if all requests are answered, and no more may follow."""
        state = self._lifecycle.state
        stops = self.is_stopping and (state is AWAITING_REQUEST or state is LINGERING)
        if (stops or state is DRAINING) and not self.has_unanswered:
            self._lifecycle.close()

    def cancel_turn(self) -> None:
        """Cancel waiting for a turn, when the connection is lost. Hits that are in the store are not cancelled."""
        if self._in_flight is not None and not self._in_flight.records:
            self._in_flight.cancel_wait()

    def _decide(self, exchange: Exchange) -> None:
        traffic = exchange.traffic
        if traffic is None:
            # For a smaller body admission is checked after parsing.
            needs_admission = exchange.head.body_bytes != BODY_BYTES
        else:
            needs_admission = traffic.limit is not None or not traffic.share.is_free
        if needs_admission:
            admitted = exchange.answer is not None or self._server.admission.admits(exchange, self._take_turn)
            if not admitted and self._wait_for_turn(exchange):
                return
        self._accept(exchange)

    def _accept(self, exchange: Exchange) -> None:
        if exchange.held_bytes:
            self._flow.hold(exchange, 0)
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
                admitted = self._server.admission.admits(exchange, self._take_turn, sender_of(records[0]))
                if not admitted and self._wait_for_turn(exchange):
                    return
                if isinstance(exchange.answer, Refusal):
                    self._refuse(exchange, exchange.answer)
                    return
            self._in_flight = exchange
            exchange.store(records, self._server.store, self._answer)

    def _wait_for_turn(self, exchange: Exchange) -> bool:
        """Let `exchange` wait for its turn. Return False, with 503 as its answer, if HELD_BYTES is exceeded."""
        self._flow.hold(exchange, exchange.received_bytes)
        if self._flow.is_over_limit:
            exchange.cancel_wait()
            exchange.answer = answers.UNAVAILABLE
            return False
        self._in_flight = exchange
        return True

    def _take_turn(self, is_late: bool) -> int:
        """Continue the exchange that waited for its turn, or answer 503 if it waited too long."""
        exchange, self._in_flight = self._in_flight, None
        if exchange is None or self._lifecycle.transport is None:
            return 0
        if is_late:
            exchange.answer = answers.UNAVAILABLE
        elif exchange.traffic is not None and exchange.traffic.limit is not None:
            self._server.admission.is_within_limit(exchange, exchange.traffic.limit)
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
        if (
            self._queue
            or self._flow.is_reading_paused
            or self._awaiting_continue is not None
            or self.is_stopping
            or self._lifecycle.state is DRAINING
        ):
            self.resume()

    def _refuse(self, exchange: Exchange, why: Refusal) -> None:
        head, refused = exchange.head, self._server.refused
        project = exchange.project or why.project
        HITS_REFUSED.labels(project, why.code).inc()
        refused.add(why, head.method, head.path, project, lambda: exchange.body)
        answer = answers.refusal(why, exchange.keep_alive, head.origin, with_body=head.with_body)
        self._write(answer, exchange.keep_alive)

    def _write(self, answer: bytes, keep_alive: bool) -> None:
        lifecycle = self._lifecycle
        state = lifecycle.state
        # A part of the next request may have arrived already.
        is_idle = state is AWAITING_REQUEST or state is DRAINING
        lifecycle.deadline = time.monotonic() + (IDLE_SECONDS if is_idle else BODY_SECONDS)
        transport = lifecycle.transport
        if transport is None:
            return
        transport.write(self._server.dated(answer))
        if keep_alive:
            return
        if state is REFUSING and not self.is_stopping:
            # Closing now would reset the connection while the client still sends, so it could not read the answer.
            transport.write_eof()
            lifecycle.enter(LINGERING)
            lifecycle.deadline = time.monotonic() + LINGER_SECONDS
        else:
            lifecycle.close()
