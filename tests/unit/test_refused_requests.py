"""The sample of refused requests that an intake keeps."""

from __future__ import annotations

import gzip
import json
import sys
import threading
import tracemalloc
from typing import Any

import pytest

from pipeline.codec.refused_request import RefusedRequest
from pipeline.config import ProjectConfig
from pipeline.intake.answers import NOT_FOUND, UNAUTHORIZED
from pipeline.intake.refused import BODIES_SECONDS, KEPT, PER_SECOND, RefusedRequests
from pipeline.intake.tokens import Tokens
from pipeline.stages.accept import Code, Refusal
from tests.unit.intake_line import Line, request

INVALID = Refusal(400, Code.INVALID_HIT, "event is missing; it must be an object", "event")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def kept(refused: RefusedRequests, after: int = 0, bodies: bool = False) -> list[dict[str, Any]]:
    return [json.loads(line) for line in refused.lines(after, bodies).splitlines()]


def test_a_request_is_kept_with_time_code_path_and_project() -> None:
    line = Line()
    assert line.ask(request(b'{"user": {}}')) == b"400"
    assert line.ask(request(b"{}", token="wrong")) == b"401"
    assert line.ask(request(b"{}", path="/trak?token=old&x=1")) == b"404"
    assert line.ask(b"GET /track HTTP/1.1\r\nHost: x\r\n\r\n") == b"405"
    shown = [
        {name: entry.get(name, "") for name in ("status", "code", "method", "path", "project", "place")}
        for entry in kept(line.state.refused)
    ]
    assert [tuple(entry.values()) for entry in shown] == [
        (400, "invalid_hit", "POST", "/track", "shop", "event"),
        (401, "unauthorized", "POST", "/track", "", ""),
        (404, "not_found", "POST", "/trak", "", ""),
        (405, "method_not_allowed", "GET", "/track", "", ""),
    ]
    assert all(entry["time_ms"] > 1_700_000_000_000 and entry["message"] for entry in kept(line.state.refused))


def test_invalid_http_and_hits_that_were_not_stored_are_kept_too() -> None:
    line = Line()
    line.connection.data_received(request(b'{"event": {"user": {"userId": "u"}}}'))
    line.store.reports.pop(0)(False)
    line.connection.data_received(b"POST /track HTTP/9.9\r\n\r\n")
    assert [(e["status"], e.get("path", ""), e.get("project", "")) for e in kept(line.state.refused)] == [
        (503, "/track", "shop"),
        (400, "", ""),
    ]


def test_the_project_is_shown_if_the_body_holds_its_token() -> None:
    line = Line()
    body = b'{"writeKey": "old", "type": "track", "userId": "u"}'
    line.ask(b"POST /v1/track HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    (entry,) = kept(line.state.refused)
    assert (entry["code"], entry["project"], entry["place"]) == ("invalid_hit", "shop", "event")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/ds/any-stream", "/ds/***"),
        (b"/ds/any-stream/more", "/ds/***"),
        (b"/track/old", "/track/***"),
        (b"/track/o%6cd", "/track/***"),
        (b"/v1/8f14e45fceea167a5a36dedd4bea2543/hits", "/v1/***/hits"),
        (b"/track/x:old@shop", "/track/x:***@shop"),
        (b"/v1/track;writeKey=old,x", "/v1/track;writeKey=***,x"),
        (b"/v1/key=8f14e45fceea167a5a36dedd4bea2543", "/v1/key=***"),
        (b"/wp-login.php", "/wp-login.php"),
        (b"/a\x1b[2J\xff%0a", "/a\\x1b[2J\ufffd\\n"),
        (b"/" + b"x/" * 4_000, "/" + "x/" * 49 + "…"),
    ],
)
def test_a_path_shows_no_key_and_no_control_character_and_is_short(path: bytes, shown: str) -> None:
    tokens = Tokens({"shop": ProjectConfig(tokens=["old"], data_streams=["any-stream"])})
    refused = RefusedRequests(tokens.is_secret)
    refused.add(NOT_FOUND, b"GET", path, "")
    assert kept(refused)[0]["path"] == shown


def test_a_flood_is_counted_and_does_not_displace_other_codes(clock: Clock) -> None:
    refused = RefusedRequests(clock=clock)
    refused.add(INVALID, b"POST", b"/track", "shop")
    for _ in range(10):
        for _ in range(50_000):
            refused.add(UNAUTHORIZED, b"POST", b"/track", "")
        clock.now += 1
    refused.add(UNAUTHORIZED, b"POST", b"/track", "")
    entries = kept(refused)
    assert entries[0]["code"] == "invalid_hit"
    flood = entries[1:]
    assert len(flood) == KEPT
    assert max(sum(e["time_ms"] == ms for e in flood) for ms in {e["time_ms"] for e in flood}) == PER_SECOND
    assert [e["missed"] for e in flood if e.get("missed")] == [50_000 - PER_SECOND] * 5
    assert refused.lines(entries[-1]["number"]) == b""


def test_the_memory_of_refused_requests_is_bounded(clock: Clock) -> None:
    refused = RefusedRequests(clock=clock)
    refused.lines(bodies=True)
    long = Refusal(400, Code.INVALID_HIT, "m" * 65_000, "p" * 65_000)
    tracemalloc.start()
    for code in Code:
        for number in range(20 * KEPT):
            clock.now += BODIES_SECONDS / 10_000_000  # within the time for bodies
            if number % PER_SECOND == 0:
                refused._kinds[code].second = 0
            why = Refusal(400, code, long.message, long.path)
            refused.add(why, b"M" * 8_000, b"/\xc3\xa9" * 2_000, "", lambda: b"b" * 500_000)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept(refused)) == KEPT * len(Code)
    assert held < 700_000 * len(Code)
    longest = max(refused.lines(bodies=True).splitlines(), key=len)
    assert len(longest) < 4_000


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (rb'{"\u0077riteKey":"old"}', r'{"\u0077riteKey":"***"}'),
        (b'{"key": "any/token=="}', '{"key": "***"}'),
        (b"key=old&url=https://old:@shop.example/", "key=***&url=https://***:@shop.example/"),
        (b'{"event": "older", "n": 1}', '{"event": "older", "n": 1}'),
        (
            rb'{"\u0069p": "192.0.2.7", "i\u0070": "192.0.2.8", "ip": "x"}',
            r'{"\u0069p": "***", "i\u0070": "***", "ip": "***"}',
        ),
    ],
)
def test_a_body_shows_no_token_and_no_address_however_its_key_is_spelled(body: bytes, shown: str) -> None:
    tokens = Tokens({"shop": ProjectConfig(tokens=["old", "any/token=="])})
    refused = RefusedRequests(tokens.is_secret, hides_addresses=lambda: True)
    refused.lines(bodies=True)
    refused.add(INVALID, b"POST", b"/track", "", lambda: body)
    assert kept(refused, bodies=True)[0]["body"] == shown


def test_bodies_are_kept_only_while_requested_from_this_machine(clock: Clock) -> None:
    refused = RefusedRequests(clock=clock)
    asked: list[str] = []

    def body() -> bytes:
        asked.append("asked")
        return b'{"writeKey" : "the-token", "a": "\x1b"}'

    refused.add(INVALID, b"POST", b"/v1/track", "shop", body)
    assert not asked and b"body" not in refused.page({"bodies": "1"}, "10.0.0.7")
    refused.add(INVALID, b"POST", b"/v1/track", "shop", body)
    assert not asked
    refused.page({"bodies": "1"}, "::ffff:7f00:1")
    refused.add(INVALID, b"POST", b"/v1/track", "shop", body)
    assert asked == ["asked"]
    assert kept(refused, bodies=True)[-1]["body"] == '{"writeKey" : "***", "a": "\\x1b"}'
    assert b"body" not in refused.page({}, "127.0.0.1")
    clock.now += BODIES_SECONDS + 1
    refused.add(INVALID, b"POST", b"/v1/track", "shop", body)
    assert asked == ["asked"] and "body" not in kept(refused, bodies=True)[-1]


def test_a_body_of_gzip_is_shown_inflated() -> None:
    line = Line()
    line.state.refused.lines(bodies=True)
    line.ask(request(gzip.compress(b'{"event": 7}' + b" " * 60_000), "Content-Encoding: gzip"))
    (entry,) = kept(line.state.refused, bodies=True)
    assert entry["body"].startswith('{"event": 7} ') and len(entry["body"]) <= 2_000


@pytest.mark.parametrize("after", ["-1", "x", "9" * 30, "", "٣"])
def test_an_invalid_number_means_from_the_start(after: str) -> None:
    refused = RefusedRequests()
    refused.add(INVALID, b"POST", b"/track", "shop")
    assert refused.page({"after": after}, "127.0.0.1").count(b"\n") == 1


def test_another_thread_can_read_it_while_it_fills() -> None:
    clock = Clock()
    refused = RefusedRequests(clock=clock)
    stopped = threading.Event()
    problems: list[BaseException] = []

    def read() -> None:
        try:
            while not stopped.is_set():
                refused.lines()
        except BaseException as error:
            problems.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(20_000):
            clock.now += 1
            refused.add(INVALID, b"POST", b"/track", "shop")
    finally:
        stopped.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not problems and len(kept(refused)) == KEPT


def test_numbers_increase_across_restarts(clock: Clock) -> None:
    first = RefusedRequests(clock=clock)
    for _ in range(100):
        clock.now += 0.01
        first.add(INVALID, b"POST", b"/track", "")
    last = kept(first)[-1]["number"]
    second = RefusedRequests(clock=clock)
    second.add(INVALID, b"POST", b"/track", "")
    assert len(kept(second, after=last)) == 1
    assert RefusedRequest(1, 2, 400, "x").body == ""
