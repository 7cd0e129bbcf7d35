"""Fair queueing of projects, with a fake clock and without an event loop."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable

import pytest

from pipeline.config import ProjectConfig
from pipeline.intake import shares
from pipeline.intake.admission import Admission
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.protocol import IntakeProtocol
from pipeline.intake.server_state import HELD_BYTES, ServerState
from pipeline.intake.shares import LONGEST_WAIT_SECONDS, PART_RECORDS, SHARED_SECONDS, SHARED_WEIGHT, Share, Shares
from pipeline.intake.tokens import Tokens
from tests.roles import hit
from tests.unit.intake_line import Kept, Wire, request


class Loop:
    """A fake event loop that runs one iteration at a time."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.calls: deque[Callable[[], None]] = deque()

    def clock(self) -> float:
        return self.now

    def turn(self) -> None:
        for _ in range(len(self.calls)):
            self.calls.popleft()()


@pytest.fixture
def loop() -> Loop:
    return Loop()


class Sender:
    """A project that always has another request of `weight` to send."""

    def __init__(self, share: Share, weight: int, log: list[Sender]) -> None:
        self.share, self.weight, self.log = share, weight, log

    def ask(self, name: object) -> bool:
        if self.share.is_free:
            self.go_on(False)
            return True
        self.share.wait(name, self.go_on)
        return False

    def go_on(self, is_late: bool) -> int:
        self.share.begin(self.weight)
        self.log.append(self)
        return 1


def test_one_project_alone_may_fill_a_large_part_of_the_queue(loop: Loop) -> None:
    alone = Sender(Shares(loop.clock, loop.calls.append).new(), 10_000, [])
    assert sum(alone.ask(number) for number in range(10_000)) == shares.ALONE_WEIGHT // 10_000


def test_several_projects_share_a_small_part_until_only_one_sends_for_long(loop: Loop) -> None:
    made = Shares(loop.clock, loop.calls.append)
    flood, other = made.new(), made.new()
    flood.begin(1_000)
    other.begin(1_000)
    assert made.most_weight == SHARED_WEIGHT // 2
    other.end(1_000)
    for _ in range(3):
        flood.begin(10)
        loop.now += 0.5
        made.sweep(loop.now)
    assert made.most_weight == SHARED_WEIGHT, "one that sends now and then is not waited for"
    other.begin(10)
    assert made.most_weight == SHARED_WEIGHT // 2
    flood.begin(10)
    loop.now += SHARED_SECONDS + 1
    made.sweep(loop.now)
    assert made.most_weight == shares.ALONE_WEIGHT


def test_each_of_many_projects_has_a_minimum_weight(loop: Loop) -> None:
    made = Shares(loop.clock, loop.calls.append)
    for _ in range(1_000):
        made.new().begin(1)
    assert made.most_weight == shares.LEAST_WEIGHT


def test_waiting_requests_resume_in_turn_of_projects_as_kafka_acknowledges(loop: Loop) -> None:
    made = Shares(loop.clock, loop.calls.append)
    log: list[Sender] = []
    senders = [Sender(made.new(), SHARED_WEIGHT, log) for _ in range(3)]
    assert all(sender.ask("first") for sender in senders)
    for sender in senders:
        assert not any(sender.ask(number) for number in range(4))
    del log[:]
    loop.turn()
    assert not log, "there is no room"
    for sender in senders:
        sender.share.end(sender.weight)
    loop.turn()
    assert log == senders, "one each, whoever waits with most"


def test_projects_resume_in_turn_while_there_is_room_for_all(loop: Loop) -> None:
    made = Shares(loop.clock, loop.calls.append)
    log: list[Sender] = []
    senders = [Sender(made.new(), 1_000, log) for _ in range(3)]
    for sender in senders:
        for number in range(3):
            sender.share.wait((sender, number), sender.go_on)
    while loop.calls:
        loop.turn()
    assert log == senders * 3


def test_one_loop_iteration_resumes_a_limited_number_of_records(loop: Loop) -> None:
    made = Shares(loop.clock, loop.calls.append)
    log: list[Sender] = []
    sender = Sender(made.new(), 1, log)
    sender.share.begin(shares.ALONE_WEIGHT)
    for number in range(2 * PART_RECORDS):
        sender.ask(number)
    sender.share.end(shares.ALONE_WEIGHT)
    loop.turn()
    assert len(log) == PART_RECORDS
    loop.turn()
    assert len(log) == 2 * PART_RECORDS and not made.waiting


def messages(count: int, name: str = "m") -> bytes:
    batch = [{"type": "track", "event": "E", "userId": "u", "messageId": f"{name}{number}"} for number in range(count)]
    return json.dumps({"batch": batch}).encode()


class Intake:
    """Clients of three projects at one intake; the test decides when Kafka acknowledges."""

    def __init__(self, loop: Loop) -> None:
        projects = {name: ProjectConfig(tokens=[name]) for name in ("flood", "shop", "blog")}
        self.store = Kept()
        self.state = ServerState(
            Endpoints(Tokens(projects)),
            self.store,
            b"{}",
            ClientAddress([]),
            lambda address: address,
            admission=Admission(projects, 1, loop.clock, loop.calls.append),
        )
        self.loop = loop

    def client(self) -> tuple[IntakeProtocol, Wire]:
        wire = Wire()
        connection = IntakeProtocol(self.state)
        connection.connection_made(wire)
        return connection, wire

    def send(self, project: str, body: bytes, path: str = "/track") -> tuple[IntakeProtocol, Wire]:
        connection, wire = self.client()
        connection.data_received(request(body, token=project, path=path))
        return connection, wire

    def flood(self, requests: int) -> list[tuple[IntakeProtocol, Wire]]:
        """Send batches from as many clients and a hit of another project, and run the loop until it is idle."""
        self.send("blog", hit("somebody"))
        sent = [self.send("flood", messages(2_500, f"{number}-"), "/v1/batch") for number in range(requests)]
        self.turns()
        return sent

    def turns(self) -> None:
        while self.loop.calls:
            self.loop.turn()

    def acknowledge(self, count: int | None = None, stored: bool = True) -> None:
        reports = self.store.reports[:count]
        del self.store.reports[:count]
        for report in reports:
            report(stored)
        self.turns()

    def under_way(self, project: str) -> int:
        waiting = len(self.store.reports)
        return sum(kept.project == project for kept in self.store.hits[len(self.store.hits) - waiting :])


def test_a_flood_leaves_a_short_queue_before_another_projects_hit(loop: Loop) -> None:
    intake = Intake(loop)
    intake.flood(40)
    assert intake.under_way("flood") <= 2_000
    before = len(intake.store.reports)
    _, wire = intake.send("shop", hit("mine"))
    assert intake.store.hits[-1].key == b"shop/mine", "it waits for nobody"
    assert before <= 2_001
    intake.acknowledge(before + 1)
    assert wire.written[-1].startswith(b"HTTP/1.1 204")


def test_a_flood_is_stored_completely_in_the_end(loop: Loop) -> None:
    intake = Intake(loop)
    sent = intake.flood(8)
    while intake.store.reports:
        intake.acknowledge(700)
    assert [wire.written[-1][9:12] for _, wire in sent] == [b"200"] * 8
    keys = [kept.key for kept in intake.store.hits if kept.project == "flood"]
    assert len(keys) == len(set(keys)) == 8 * 2_500
    assert not intake.state.admission.shares.waiting and not intake.state.held_bytes
    assert all(share.weight == 0 and not share.waiting for share in intake.state.admission._shares.values())


def test_a_waiting_batch_is_not_expanded_and_counts_as_held_bytes(loop: Loop) -> None:
    intake = Intake(loop)
    sent = intake.flood(10)
    body = len(messages(2_500, "0-"))
    expanded = {kept.key.partition(b"-")[0] for kept in intake.store.hits if kept.project == "flood"}
    assert len(expanded) == 1
    assert intake.state.held_bytes == 9 * body
    for connection, _ in sent[5:]:
        connection.connection_lost(None)
    assert intake.state.held_bytes == 4 * body
    (share,) = intake.state.admission.shares.waiting
    assert len(share.waiting) == 1 + 4, "who has gone does not wait"


def test_a_request_that_waits_too_long_is_answered_503(loop: Loop) -> None:
    intake = Intake(loop)
    sent = intake.flood(10)
    loop.now += LONGEST_WAIT_SECONDS + 0.1
    intake.state.admission.sweep(loop.now)
    answers = [wire.written[-1] for _, wire in sent[1:]]
    assert all(answer.startswith(b"HTTP/1.1 503") and b"\r\nRetry-After: " in answer for answer in answers)
    assert not sent[0][1].written, "a part of it waits for Kafka"
    intake.acknowledge()
    assert sent[0][1].written[-1].startswith(b"HTTP/1.1 503")
    assert not intake.state.held_bytes and not intake.state.admission.shares.waiting


def test_a_batch_stores_no_more_parts_after_one_fails(loop: Loop) -> None:
    intake = Intake(loop)
    ((_, wire),) = intake.flood(1)
    stored = len(intake.store.hits)
    intake.acknowledge(stored=False)
    assert wire.written[-1].startswith(b"HTTP/1.1 503")
    assert len(intake.store.hits) == stored and not intake.state.admission.shares.waiting


def test_the_memory_of_waiting_requests_is_bounded(loop: Loop) -> None:
    intake = Intake(loop)
    intake.flood(3)
    intake.state.held_bytes += HELD_BYTES
    _, wire = intake.send("flood", messages(2_500), "/v1/batch")
    assert wire.written[-1].startswith(b"HTTP/1.1 503")


def without_token(sent: bytes) -> bytes:
    start = sent.index(b"Authorization: ")
    return sent[:start] + sent[sent.index(b"\r\n", start) + 2 :]


@pytest.mark.parametrize("path", ["/collect", "/v1/track"])
def test_a_project_named_in_the_body_waits_too(loop: Loop, path: str) -> None:
    intake = Intake(loop)
    intake.flood(3)
    stored = len(intake.store.hits)
    body = json.dumps(
        {"writeKey": "flood", "projectId": "flood", "event": "E", "userId": "u", "messageId": "small"}
        if path == "/v1/track"
        else {"hitId": "small", "projectId": "flood", "event": {"name": "E"}, "userId": "u"}
    ).encode()
    connection, wire = intake.client()
    connection.data_received(without_token(request(body, path=path)))
    assert len(intake.store.hits) == stored and not wire.written
    connection.data_received(without_token(request(body.replace(b"small", b"later"), path=path)))
    while intake.store.reports:
        intake.acknowledge()
    assert [answer[9:12] for answer in wire.written] == [b"200" if path == "/v1/track" else b"204"] * 2
    ours = [kept.key for kept in intake.store.hits if kept.key in (b"flood/small", b"flood/later")]
    assert ours == [b"flood/small", b"flood/later"], "once each, in their order"


def test_requests_behind_one_that_waits_are_answered_in_order(loop: Loop) -> None:
    intake = Intake(loop)
    intake.flood(3)
    connection, wire = intake.client()
    connection.data_received(request(messages(2, "first"), token="flood", path="/v1/batch"))
    connection.data_received(request(b"{", token="flood"))
    assert not wire.written and not wire.reading
    while intake.store.reports:
        intake.acknowledge()
    assert [answer[9:12] for answer in wire.written] == [b"200", b"400"]
    assert wire.reading


def test_late_acknowledgements_shorten_the_queue_and_quick_ones_lengthen_it(loop: Loop) -> None:
    made = Shares(loop.clock, loop.calls.append)
    flood, other = made.new(), made.new()
    other.begin(1)
    flood.begin(1)
    flood.wait("more", lambda is_late: 1)

    def answered(seconds: float) -> int:
        began = loop.now
        loop.now += seconds
        made.adjust(began)
        return made.most_weight

    at_first = answered(0.01)
    late = [answered(0.1) for _ in range(30)]
    assert late[0] < at_first and late[-1] == shares.LEAST_SHARED_WEIGHT // 2
    quick = [answered(0.01) for _ in range(300)]
    assert quick == sorted(quick) and quick[-1] == shares.MOST_SHARED_WEIGHT // 2
    slow_kafka = [answered(0.2) for _ in range(1_000)]
    assert slow_kafka[-1] > slow_kafka[30], "a Kafka that is always slow is no queue"


def test_a_batch_is_expanded_step_by_step(loop: Loop) -> None:
    intake = Intake(loop)
    _, wire = intake.send("flood", messages(500), "/v1/batch")
    turns = 0
    while not intake.store.hits:
        loop.turn()
        turns += 1
        intake.send("shop", hit(str(turns)))
        assert intake.store.hits.pop().project == "shop", "others go on in between"
        if turns > 5:
            break
    intake.turns()
    while intake.store.reports:
        intake.acknowledge()
    assert wire.written[-1].startswith(b"HTTP/1.1 200")
    assert sum(kept.project == "flood" for kept in intake.store.hits) == 500


@pytest.mark.parametrize("more", [{"projectId": 5}, {"context": {"a": 1}}])
def test_a_batch_with_a_known_key_is_expanded_whatever_else_it_holds(loop: Loop, more: dict[str, object]) -> None:
    intake = Intake(loop)
    body = json.dumps(json.loads(messages(200)) | {"writeKey": "shop"} | more).encode()
    connection, wire = intake.client()
    connection.data_received(without_token(request(body, path="/v1/batch")))
    intake.turns()
    while intake.store.reports:
        intake.acknowledge()
    assert wire.written[-1].startswith(b"HTTP/1.1 200") and len(intake.store.hits) == 200


def test_a_batch_that_becomes_too_large_is_refused_before_the_first_hit_is_stored(loop: Loop) -> None:
    intake = Intake(loop)
    body = json.dumps(json.loads(messages(2_500)) | {"context": {"pad": "x" * 1_000}}).encode()
    _, wire = intake.send("shop", body, "/v1/batch")
    intake.turns()
    assert wire.written[-1].startswith(b"HTTP/1.1 400") and b"too_large" in wire.written[-1]
    assert not intake.store.hits
