"""Random events on one HTTP connection: only legal transitions, and each request answered once, in order."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pipeline.intake
from pipeline.config import ProjectConfig
from pipeline.intake.admission import Admission
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.connection_state import (
    AWAITING_REQUEST,
    CLOSED,
    CLOSING,
    LINGERING,
    READING_BODY,
    TRANSITIONS,
    ConnectionState,
    Lifecycle,
)
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.protocol import IntakeProtocol
from pipeline.intake.response_queue import _MAX_QUEUED_REQUESTS
from pipeline.intake.server_state import ServerState
from pipeline.intake.shares import ALONE_WEIGHT, LONGEST_WAIT_SECONDS
from pipeline.intake.tokens import Tokens
from tests.unit.intake_line import Kept, Line, Wire
from tests.unit.random_requests import random_requests

Transition = tuple[ConnectionState, ConnectionState]
LEGAL = {(state, following) for state, all_following in TRANSITIONS.items() for following in all_following}
_SEEDS = 800


class StrictWire(Wire):
    """A transport that allows no write and no second close after `close`, and 100 Continue only before a body."""

    connection: IntakeProtocol

    def write(self, data: bytes) -> None:
        assert not self.closed
        if data.startswith(b"HTTP/1.1 100"):
            assert self.connection._lifecycle.state is READING_BODY
        super().write(data)

    def close(self) -> None:
        assert not self.closed
        super().close()


class Scenario:
    """One client, whose bytes arrive in random parts, between random events of the socket, of Kafka and of the process."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        count = self.source.choice([3, 12, 90])
        self.requests = [request for number in range(count) for request in random_requests(self.source, number)]
        self.stream = b"".join(request.data for request in self.requests)
        self.ends: list[int] = []  # of heads and of requests
        for request in self.requests:
            start = self.ends[-1] if self.ends else 0
            self.ends += [start + request.data.find(b"\r\n\r\n") + 4, start + len(request.data)]
        self.fed = 0
        self.now = 1_000.0
        self.calls: deque[Callable[[], None]] = deque()
        self.kept = Kept()
        self.state = ServerState(
            Endpoints(Tokens({"shop": ProjectConfig(tokens=["old"])})),
            self.kept,
            b"{}",
            ClientAddress([]),
            lambda address: address,
            admission=Admission(clock=lambda: self.now, soon=self.calls.append),
        )
        self.share = self.state.admission.traffic("shop", True).share
        self.wire = StrictWire()
        self.connection = self.wire.connection = IntakeProtocol(self.state)
        self.connection.connection_made(self.wire)
        self.is_lost = self.has_ended = self.is_full = False

    @property
    def current(self) -> ConnectionState:
        return self.connection._lifecycle.state

    def feed(self) -> None:
        """Let the next bytes arrive, if the transport reads."""
        if self.wire.reading and not (self.wire.closed or self.has_ended):
            size = self.source.choice([1, 20, 300, 5_000, 70_000])
            if self.source.random() < 0.5:
                size = next((end - self.fed for end in self.ends if end > self.fed), 1)
            part = self.stream[self.fed : self.fed + size]
            self.fed += len(part)
            stored = len(self.kept.hits)
            if part:
                self.connection.data_received(part)
            assert len(self.kept.hits) == stored or not self.connection._flow.is_writing_paused

    def acknowledge(self) -> None:
        for _ in range(self.source.choice([1, 1, 5, 200])):
            if self.kept.reports:
                self.kept.reports.pop(0)(self.source.random() < 0.95)
        self.turn()

    def turn(self) -> None:
        while self.calls:
            self.calls.popleft()()

    def fill(self) -> None:
        """Let other requests of the project fill its share, so that the next ones wait for their turn."""
        if not self.is_full:
            self.is_full = True
            self.share.begin(ALONE_WEIGHT)

    def free(self) -> None:
        if self.is_full:
            self.is_full = False
            self.share.end(ALONE_WEIGHT)
        self.turn()

    def wait_too_long(self) -> None:
        self.now += LONGEST_WAIT_SECONDS + 0.1
        self.state.admission.sweep(self.now)
        self.turn()

    def end_input(self) -> None:
        if not (self.has_ended or self.wire.closed) and self.wire.reading:
            self.has_ended = True
            if not self.connection.eof_received():
                self.wire.closed = True  # the transport closes

    def lose(self) -> None:
        if not self.is_lost:
            self.is_lost = self.wire.closed = True
            self.connection.connection_lost(None)
            in_flight = self.connection._responses._in_flight
            assert not self.share.waiting or (in_flight is not None and in_flight.records)

    def time_out(self) -> None:
        if not self.is_lost:
            self.connection.sweep(float("inf"))
            if self.wire.aborted:
                assert self.connection._responses._in_flight is None
                self.lose()

    def pause_writing(self) -> None:
        if not self.wire.closed:
            self.connection.pause_writing()

    def resume_writing(self) -> None:
        if not self.is_lost:
            self.connection.resume_writing()

    def stop(self) -> None:
        if not self.is_lost:
            self.connection.drain()

    def play(self) -> None:
        """Play random events, then let the rest arrive and everything be acknowledged."""
        often = [self.feed, self.acknowledge, self.turn]
        seldom = [self.pause_writing, self.resume_writing, self.fill, self.free, self.wait_too_long]
        rarely = [self.stop, self.end_input, self.time_out, self.lose]
        for _ in range(self.source.choice([10, 60, 200])):
            chance = self.source.random()
            self.source.choice(rarely if chance < 0.02 else seldom if chance < 0.15 else often)()
            self.check_between_events()
        self.free()
        self.resume_writing()
        while not self.is_lost:
            before = self.fed, len(self.wire.written)
            self.acknowledge()
            self.feed()
            self.check_between_events()
            if not self.kept.reports and before == (self.fed, len(self.wire.written)):
                break
        while self.kept.reports:  # after the connection is lost
            self.acknowledge()

    def check_between_events(self) -> None:
        """Check that nothing is stuck: answers, input, a stopping connection."""
        responses, flow = self.connection._responses, self.connection._flow
        if not self.is_lost:
            waits = responses._in_flight is not None or flow.is_writing_paused
            assert waits or (not responses._queue and not flow.is_reading_paused)
            assert self.wire.closed or self.connection.busy or not responses.is_stopping
            assert (self.connection._reader._current is not None) == (self.current is READING_BODY)

    def complete(self) -> int:
        """Return how many requests have arrived completely, up to the last one of the connection."""
        size = 0
        for number, request in enumerate(self.requests):
            size += len(request.data)
            if size > self.fed or (request.is_last and not request.statuses):
                return number
            if request.is_last:
                return number + 1
        return len(self.requests)

    def answers(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield status and origin of each answer; check that each 100 Continue stands where it belongs."""
        number = 0
        is_continued = False
        for written in self.wire.written:
            if written.startswith(b"HTTP/1.1 100"):
                assert self.requests[number].expects and not is_continued
                is_continued = True
                continue
            found = re.search(rb"Allow-Origin: (\S+)", written)
            yield written[9:12], b"" if found is None else found[1]
            number, is_continued = number + 1, False

    def check(self) -> None:
        """Check that the answers are those of the first requests, in their order, and that nothing is left."""
        answered = list(self.answers())
        assert len(self.requests) >= len(answered)
        for (status, origin), request in zip(answered, self.requests, strict=False):
            assert status in request.statuses and origin == request.origin, (status, origin, request.data[:80])
        assert self.is_lost or len(answered) >= min(self.complete(), _MAX_QUEUED_REQUESTS)
        stored = [kept.key for kept in self.kept.hits]
        assert len(stored) == len(set(stored))
        for (status, _), request in zip(answered, self.requests, strict=False):
            if status == b"204":
                identity = re.search(rb'"hitId": "(\d+)"', request.data)
                assert identity is not None and b"shop/" + identity[1] in stored
        assert not self.share.waiting and not self.share.weight
        if not self.is_lost:
            assert not self.connection._responses.has_unanswered
            assert self.wire.closed or self.has_ended or self.wire.said_all or self.fed == len(self.stream)
            if not self.connection.busy:
                assert self.state.held_bytes == 0
                assert self.current in (AWAITING_REQUEST, LINGERING, CLOSING)
                assert self.wire.closed == (self.current is CLOSING)
                assert self.wire.said_all == (self.current is LINGERING) or self.wire.closed
            self.lose()
        assert self.current is CLOSED and self.state.held_bytes == 0


def test_random_events_cause_exactly_the_legal_transitions(monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[Transition] = set()
    enter = Lifecycle.enter

    def record(self: Lifecycle, state: ConnectionState) -> None:
        found.add((self.state, state))
        enter(self, state)

    monkeypatch.setattr(Lifecycle, "enter", record)
    for seed in range(_SEEDS):
        scenario = Scenario(seed)
        try:
            scenario.play()
            scenario.check()
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        assert found <= LEGAL, f"seed {seed}"
    assert found == LEGAL


def test_an_illegal_transition_raises() -> None:
    line = Line()
    line.connection.connection_lost(None)
    with pytest.raises(AssertionError, match="illegal transition: CLOSED -> READING_HEAD"):
        line.connection._lifecycle.enter(ConnectionState.READING_HEAD)


def test_the_diagram_shows_the_legal_transitions() -> None:
    readme = (Path(pipeline.intake.__file__).parent / "README.md").read_text()
    drawn = set(re.findall(r"^ +([A-Z_]+) --> ([A-Z_]+)", readme, re.MULTILINE))
    lost = {(state.name, CLOSED.name) for state in ConnectionState if state is not CLOSED}
    assert drawn | lost == {(state.name, following.name) for state, following in LEGAL}
