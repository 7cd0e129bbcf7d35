"""One HTTP connection of the intake, without a socket: parsing, limits, order of answers, the cached head."""

from __future__ import annotations

import base64
import gzip
import json
import random
import time
import tracemalloc
import zlib
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from pipeline.codec.hit_text import BODY_BYTES
from pipeline.config import ProjectConfig
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.connection_state import BODY_SECONDS, HEADER_SECONDS, IDLE_SECONDS, LINGER_SECONDS
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.request_reader import HEADER_BYTES
from pipeline.intake.server_state import HELD_BYTES, ServerState
from pipeline.stages.accept.segment import BATCH_BYTES
from tests.roles import hit
from tests.unit.intake_line import Kept, Line, request


def test_the_same_head_again_keeps_each_body() -> None:
    line = Line()
    bodies = [hit("1"), hit("2"), hit("a longer one")]
    assert [line.ask(request(body)) for body in bodies] == [b"204"] * 3
    assert [kept.value for kept in line.store.hits] == bodies


def test_answers_have_a_current_date_header(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    for seconds, body, status in ((0.0, hit("1"), b"204 No Content"), (86_400.0, b"{", b"400 Bad Request")):
        monkeypatch.setattr("email.utils.time.time", lambda seconds=seconds: seconds)
        line.state.refresh_date()
        line.ask(request(body))
        day = b"Thu, 01 Jan 1970" if not seconds else b"Fri, 02 Jan 1970"
        assert line.wire.written[-1].startswith(b"HTTP/1.1 %b\r\nDate: %b 00:00:00 GMT\r\n" % (status, day))


def test_a_revoked_token_is_refused_at_once_on_open_connections() -> None:
    line = Line()
    assert line.ask(request(hit("1"))) == b"204"
    line.tokens.replace({"shop": ProjectConfig(tokens=["new"])})
    line.state.version += 1
    assert line.ask(request(hit("2"))) == b"401"
    assert line.ask(request(hit("3"), token="new")) == b"204"


@pytest.mark.parametrize(
    ("other", "answer"),
    [
        (request(hit("2"), token="guess"), b"401"),
        (request(hit("2"), path="/elsewhere"), b"404"),
        (request(hit("2")).replace(b"application/json", b"text/plain"), b"400"),
        (request(hit("2")).replace(b"Authorization", b"X-Authorization"), b"401"),
    ],
)
def test_a_different_head_on_the_same_connection_is_parsed_again(other: bytes, answer: bytes) -> None:
    line = Line()
    assert line.ask(request(hit("1"))) == b"204"
    assert line.ask(other) == answer
    assert line.ask(request(hit("3"))) == b"204"


def test_a_batch_is_answered_503_if_one_record_is_not_stored() -> None:
    line = Line()
    messages = b",".join(b'{"type": "track", "event": "E", "userId": "u", "messageId": "%d"}' % n for n in range(3))
    line.connection.data_received(request(b'{"batch": [' + messages + b"]}", path="/v1/batch"))
    for report, stored in zip(line.store.reports, (True, False, True), strict=True):
        assert line.wire.written == []
        report(stored)
    assert line.wire.written[0].startswith(b"HTTP/1.1 503")


def test_forwarded_headers_are_not_kept_where_no_proxy_is_trusted() -> None:
    line = Line()
    line.ask(request(hit("1"), "X-Forwarded-For: 6.6.6.6"))
    assert ("request-ip", b"203.0.113.9") in line.store.hits[0].headers
    assert b"x-forwarded-for" not in line.state.headers


def test_a_query_keeps_its_bytes() -> None:
    line = Line()
    line.tokens.replace({"shop": ProjectConfig(data_streams=["stream"])})
    line.ask(b"GET /ds/stream?name=caf%E9 HTTP/1.1\r\nHost: x\r\n\r\n")
    payload = json.loads(line.store.hits[0].value)["event"]["payload"]
    assert payload == {"query": {"name": "caf\u00e9"}, "rawQuery": "name=caf%E9"}


def test_a_dual_stack_listener_knows_its_proxies_and_clients_by_their_ipv4_addresses() -> None:
    line = Line(peer="::ffff:203.0.113.9")
    line.ask(request(hit("1")))
    assert ("request-ip", b"203.0.113.9") in line.store.hits[0].headers
    addresses = ClientAddress([ip_network("203.0.113.0/24")])
    state = ServerState(Endpoints(line.tokens), Kept(), b"{}", addresses, lambda address: address)
    behind = Line(state, peer="::ffff:203.0.113.9")
    behind.ask(request(hit("1"), "X-Forwarded-For: 198.51.100.1"))
    assert ("request-ip", b"198.51.100.1") in behind.store.hits[0].headers


@pytest.mark.parametrize(
    "begun",
    [b"GET /", b"GET /ds/x?", b"POST /track HTTP/1.1\r\nX-Endless", b"POST /track HTTP/1.1\r\nX-Endless: "],
)
def test_an_endless_head_is_not_buffered(begun: bytes) -> None:
    line = Line()
    line.connection.data_received(begun)
    for _ in range(HEADER_BYTES // 1024 + 1):
        line.connection.data_received(b"y" * 1024)
    assert line.wire.closed


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (b"", HEADER_SECONDS),
        (b"POST /track HTTP/1.1\r\nHost: x\r\n", HEADER_SECONDS),
        (request(hit("1"))[:-1], BODY_SECONDS),
    ],
    ids=["nothing", "slow header", "slow body"],
)
def test_a_slow_request_is_aborted_at_its_deadline(data: bytes, seconds: float) -> None:
    began = time.monotonic()
    line = Line()
    line.connection.data_received(data)
    line.connection.sweep(began + seconds - 0.1)
    assert not line.wire.closed
    line.connection.sweep(time.monotonic() + seconds + 0.1)
    assert line.wire.closed


@pytest.mark.parametrize(("body", "answer"), [(hit("1"), b"204"), (b"broken", b"400")])
@pytest.mark.parametrize("cut", [30, -1], ids=["in its head", "in its body"])
def test_a_request_in_flight_at_shutdown_is_answered_before_the_connection_closes(
    body: bytes, answer: bytes, cut: int
) -> None:
    line = Line()
    line.connection.data_received(request(body)[:cut])
    line.connection.drain()
    assert line.connection.busy
    assert not line.wire.closed
    assert line.ask(request(body)[cut:]) == answer
    assert line.wire.closed
    assert not line.connection.busy


def test_a_stopping_connection_answers_all_requests_of_one_packet_before_it_closes() -> None:
    line = Line()
    data = request(b"broken") + request(hit("2"))
    line.connection.data_received(data[:30])
    line.connection.drain()
    line.connection.data_received(data[30:])
    assert not line.wire.closed
    line.store.reports.pop()(True)
    assert statuses(line) == [b"400", b"204"]
    assert line.wire.closed


def test_an_idle_connection_closes_at_once_at_shutdown() -> None:
    line = Line()
    line.ask(request(hit("1")))
    line.connection.drain()
    assert line.wire.closed


def test_a_split_head_before_a_large_body_is_not_too_large() -> None:
    line = Line()
    data = request(hit("1", pad="x" * 60_000))
    line.connection.data_received(data[:50])
    assert line.ask(data[50:]) == b"204"
    assert not line.wire.closed


GZIP = "Content-Encoding: gzip"


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(hit("1")) + b"garbage",
        gzip.compress(hit("1")) + gzip.compress(b"lost"),
        gzip.compress(hit("1"))[:-1],
        b"",
    ],
    ids=["garbage behind it", "a second stream behind it", "cut", "nothing"],
)
def test_gzip_must_be_one_complete_stream(body: bytes) -> None:
    line = Line()
    assert line.ask(request(body, GZIP)) == b"400"
    assert b"invalid_content_encoding" in line.wire.written[-1]
    assert line.ask(request(gzip.compress(hit("1")), GZIP)) == b"204"


def test_garbage_after_a_gzip_stream_is_not_buffered() -> None:
    line = Line()
    data = request(gzip.compress(hit("1")), GZIP).replace(b"Content-Length: ", b"Content-Length: 9999")
    line.connection.data_received(data)
    for _ in range(BODY_BYTES // 10_000 + 1):
        line.connection.data_received(b"x" * 10_000)
    assert b"too_large" in line.wire.written[-1]


def test_an_incompressible_gzip_body_has_the_same_limit() -> None:
    text = base64.b64encode(random.Random(4).randbytes(BODY_BYTES)).decode()
    whole = hit("1", pad="")
    for more, answer in ((0, b"204"), (1, b"400")):
        body = hit("1", pad=text[: BODY_BYTES - len(whole) + more])
        packer = zlib.compressobj(0, wbits=31)  # longer than what it packs
        assert Line().ask(request(packer.compress(body) + packer.flush(), GZIP)) == answer


def test_a_gzip_body_is_not_inflated_until_it_is_complete() -> None:
    line = Line()
    bomb = gzip.compress(bytes(BATCH_BYTES))
    tracemalloc.start()
    line.connection.data_received(request(bomb, GZIP, path="/v1/batch")[:-1])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < BATCH_BYTES / 4


def test_a_body_in_many_parts_is_joined() -> None:
    line = Line()
    whole = request(hit("1"))
    for number in range(len(whole) - 1):
        line.connection.data_received(whole[number : number + 1])
    assert line.ask(whole[-1:]) == b"204"
    assert line.store.hits[0].value == hit("1")


def test_unread_answers_are_not_buffered_without_limit() -> None:
    line = Line()
    line.connection.pause_writing()
    line.connection.data_received(request(hit("1")) * 3)
    assert (line.wire.written, line.store.hits, line.wire.reading) == ([], [], False)
    line.connection.resume_writing()
    while line.store.reports:
        line.store.reports.pop(0)(True)
    assert len(line.wire.written) == 3
    assert line.wire.reading


def test_a_client_that_reads_no_answer_is_aborted_at_its_deadline() -> None:
    line = Line()
    line.connection.pause_writing()
    line.connection.data_received(request(hit("1")) * 3)
    line.connection.sweep(time.monotonic() + BODY_SECONDS + 0.1)
    assert line.wire.aborted


def test_a_cached_head_does_not_extend_the_deadline() -> None:
    line = Line()
    assert [line.ask(request(hit(name))) for name in "12"] == [b"204"] * 2
    line.connection.pause_writing()
    line.connection.data_received(request(hit("3")))
    line.connection.sweep(time.monotonic() + BODY_SECONDS + 0.1)
    assert line.wire.aborted


def test_a_client_that_does_not_read_its_last_answer_is_aborted() -> None:
    line = Line()
    assert line.ask(request(hit("1"), "Connection: close")) == b"204"
    assert line.wire.closed  # which waits until all is read
    line.connection.sweep(time.monotonic() + IDLE_SECONDS + 0.1)
    assert line.wire.aborted


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAA")
CHUNKED = request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n" % (len(body), body)


@pytest.mark.parametrize("begun", [b"1;x=", b"1\r\na\r\n0\r\nX: "], ids=["a chunk's extension", "a trailer"])
def test_endless_parts_of_a_chunked_body_are_not_buffered(begun: bytes) -> None:
    line = Line()
    line.connection.data_received(CHUNKED + begun)
    for _ in range(HEADER_BYTES // 1024 + 1):
        line.connection.data_received(b"y" * 1024)
    assert line.wire.closed or line.wire.said_all
    line.connection.data_received(request(hit("never")))
    assert line.store.hits == []


def with_extension(size: int, body: bytes, at: str) -> bytes:
    """Return a chunked body of two chunks and the last one, with an extension of `size` bytes."""
    extension = b";" + b"x" * (size - 1)
    first, second, last = (extension if at == chunk else b"" for chunk in ("first", "second", "last"))
    return b"1%b\r\n%b\r\n%x%b\r\n%b\r\n0%b\r\n\r\n" % (
        *(first, body[:1], len(body) - 1, second, body[1:]),
        last,
    )


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
@pytest.mark.parametrize("at", ["first", "second", "last"])
@pytest.mark.parametrize("before", [b"", request(hit("0; "))], ids=["alone", "behind another"])
def test_a_long_chunk_extension_is_refused_however_it_is_split(size: int, at: str, before: bytes) -> None:
    body = hit("1", pad="; a;b\r" * 100)
    for extension, answer in ((256, b"204"), (257, b"400")):
        line = Line()
        data = before + CHUNKED + with_extension(extension, body, at) + request(hit("2"))
        for start in range(0, len(data), size):
            line.connection.data_received(data[start : start + size])
            while line.store.reports:
                line.store.reports.pop(0)(True)
        answers = [b"204"] * bool(before) + [answer] + [b"204"] * (answer == b"204")
        assert [written[9:12] for written in line.wire.written] == answers
        assert (line.wire.said_all or line.wire.closed) is (answer == b"400")


def test_many_trailers_count_as_headers_do() -> None:
    line = Line()
    line.connection.data_received(CHUNKED + chunked(hit("1")))
    for number in range(HEADER_BYTES // 100 + 1):
        line.connection.data_received(b"X-%d: %s\r\n" % (number, b"y" * 100))
    assert line.wire.closed


def test_a_trailer_changes_nothing_for_this_request_or_the_next() -> None:
    line = Line()
    assert line.ask(CHUNKED + chunked(hit("1")) + b"User-Agent: trailer\r\n\r\n") == b"204"
    assert line.ask(CHUNKED.replace(b"Host", b"User-Agent: trailer\r\nHost") + chunked(hit("2")) + b"\r\n") == b"204"
    agents = [dict(kept.headers)["user-agent"] for kept in line.store.hits]
    assert agents == [b"", b"trailer"]


def test_many_parts_of_a_large_body_do_not_count_as_a_header() -> None:
    line = Line()
    data = CHUNKED + chunked(hit("1", pad="x" * 60_000)) + b"\r\n"
    for start in range(0, len(data) - 1, 1000):
        line.connection.data_received(data[start : min(start + 1000, len(data) - 1)])
    assert line.ask(data[-1:]) == b"204"
    assert not line.wire.closed


def test_a_long_path_counts_as_header_bytes() -> None:
    line = Line()
    line.connection.data_received(b"GET /ds/x?" + b"y" * HEADER_BYTES + b" HTTP/1.1\r\n\r\n")
    assert line.wire.closed


def test_an_answer_does_not_extend_the_deadline_of_the_next_request() -> None:
    line = Line()
    line.connection.data_received(request(hit("1")) + request(hit("2"))[:-1])
    line.store.reports.pop()(True)
    line.connection.sweep(time.monotonic() + BODY_SECONDS + 0.1)
    assert line.wire.closed


@pytest.mark.parametrize(
    ("more", "answers"),
    [
        (b"no HTTP\r\n\r\n", [b"204", b"405"]),
        (b"FOO /track HTTP/1.1\r\n\r\n", [b"204", b"405"]),
        (b"POST /track HTTP/x\r\n\r\n", [b"204", b"400"]),
        (request(b"{}", "Content-Length: 3"), [b"204", b"400"]),
        (b"POST /track HTTP/1.1\r\nX: " + b"y" * HEADER_BYTES + b"\r\n\r\n", [b"204"]),
    ],
)
def test_requests_before_a_broken_one_are_answered(more: bytes, answers: list[bytes]) -> None:
    line = Line()
    line.connection.data_received(request(hit("1")) + more + request(hit("never")))
    assert not line.wire.closed
    line.connection.data_received(request(hit("never")))
    assert [kept.value for kept in line.store.hits] == [hit("1")]
    line.store.reports.pop()(True)
    assert [answer[9:12] for answer in line.wire.written] == answers
    line.connection.sweep(time.monotonic() + LINGER_SECONDS + 0.1)
    assert line.wire.closed
    assert line.state.held_bytes == 0


_PLAIN = request(hit("never"))
_HOST = b"Host: x\r\n"


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (b"GET /ds/stream\r\n\r\n", b"HTTP/1.1"),
        *((_PLAIN.replace(b"HTTP/1.1", version), b"HTTP/1.1") for version in (b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9")),
        *((_PLAIN.replace(b"HTTP/1.1", version), b"HTTP/1.1") for version in (b"HTP/1.1", b"HTTP/1.10", b"http/1.1")),
        (_PLAIN.replace(_HOST, b""), b"one Host"),
        (_PLAIN.replace(_HOST, _HOST * 2), b"one Host"),
        (_PLAIN.replace(_HOST, b"Host: x\r\nX: y\r\nhost: y\r\n"), b"one Host"),
        (_PLAIN.replace(_HOST, _HOST * 2).replace(b"HTTP/1.1", b"HTTP/1.0"), b"one Host"),
        (_PLAIN.replace(_HOST, _HOST + b"Authorization: Basic eDo=\r\n"), b"one Authorization"),
        (request(hit("never"), "Connection: Upgrade", "Upgrade: h2c").replace(_HOST, _HOST * 2), b"one Host"),
        (_PLAIN.replace(b"Content-Length", b"Transfer-Encoding: gzip\r\nX"), b"chunked"),
        (CHUNKED.replace(b"chunked", b"gzip, chunked") + chunked(hit("never")) + b"\r\n", b"chunked"),
        (
            CHUNKED.replace(b"Transfer", b"Transfer-Encoding: gzip\r\nTransfer") + chunked(hit("never")) + b"\r\n",
            b"chunked",
        ),
    ],
)
@pytest.mark.parametrize("parts", ["whole", "byte by byte"])
def test_an_ambiguous_request_is_refused_and_the_connection_closes(broken: bytes, told: bytes, parts: str) -> None:
    """HTTP/0.9, an invalid version, no Host or two, a transfer coding other than chunked (RFC 9112, 2.3, 3.2 and 6.1)."""
    line = Line()
    line.tokens.replace({"shop": ProjectConfig(tokens=["old"], data_streams=["stream"])})
    assert line.ask(request(hit("1"))) == b"204"
    size = len(broken) if parts == "whole" else 1
    for start in range(0, len(broken), size):
        line.connection.data_received(broken[start : start + size])
    line.connection.data_received(request(hit("never")))
    assert [answer[9:12] for answer in line.wire.written] == [b"204", b"400"]
    assert told in line.wire.written[-1] and b"Connection: close" in line.wire.written[-1]
    assert line.wire.said_all or line.wire.closed
    assert [kept.value for kept in line.store.hits] == [hit("1")]


@pytest.mark.parametrize(
    "good",
    [
        request(hit("2")).replace(b"Host: x", b"Host:"),
        request(hit("2"), *H2C).replace(b"Host: x", b"Host:"),
        CHUNKED.replace(b"chunked", b"\tChunked ") + chunked(hit("2")) + b"\r\n",
        request(hit("2")).replace(_HOST, b"").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request(hit("2"), "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=[
        "an empty Host",
        "with an offer",
        "chunked in other letters",
        "HTTP/1.0 without Host",
        "HTTP/1.0 expects nothing",
    ],
)
def test_an_unambiguous_request_is_accepted(good: bytes) -> None:
    line = Line()
    assert line.ask(good) == b"204"
    assert len(line.wire.written) == 1


EXPECTING = request(hit("2"), "Expect: 100-continue").removesuffix(hit("2"))


def statuses(line: Line) -> list[bytes]:
    return [answer[9:12] for answer in line.wire.written]


def test_100_continue_is_sent_only_after_all_earlier_answers() -> None:
    line = Line()
    line.connection.data_received(request(hit("1")) + request(hit("1")) + EXPECTING)
    assert line.wire.written == []
    line.store.reports.pop(0)(True)
    assert statuses(line) == [b"204"]
    line.store.reports.pop(0)(True)
    assert statuses(line) == [b"204", b"204", b"100"]
    line.connection.pause_writing()
    line.connection.resume_writing()
    assert line.ask(hit("2")) == b"204"
    assert statuses(line) == [b"204", b"204", b"100", b"204"]
    line.connection.data_received(EXPECTING)
    assert statuses(line)[4:] == [b"100"]
    assert line.ask(hit("2")) == b"204"


def test_100_continue_is_not_sent_once_the_body_has_arrived() -> None:
    line = Line()
    line.connection.data_received(request(hit("1")) + EXPECTING + hit("2")[:-1])
    line.store.reports.pop(0)(True)
    assert line.ask(hit("2")[-1:]) == b"204"
    assert statuses(line) == [b"204", b"204"]
    line.connection.data_received(request(hit("3")) + EXPECTING + hit("2") + request(hit("4")).removesuffix(hit("4")))
    while line.store.reports:
        line.store.reports.pop(0)(True)
    assert line.ask(hit("4")) == b"204"
    assert statuses(line)[2:] == [b"204"] * 3


def test_100_continue_is_not_sent_after_the_end_of_input() -> None:
    line = Line()
    line.connection.data_received(request(hit("1")) + EXPECTING)
    assert line.connection.eof_received()
    line.store.reports.pop()(True)
    assert statuses(line) == [b"204"]
    assert line.wire.closed


@pytest.mark.parametrize(
    ("last", "answers"),
    [
        (request(b"x" * (BODY_BYTES + 1)), [b"204", b"400"]),
        (request(hit("2"), "Connection: close"), [b"204", b"204"]),
        (request(hit("2")).replace(b"HTTP/1.1", b"HTTP/1.0"), [b"204", b"204"]),
        (request(hit("2"), "Expect: 100-continue", token="guess"), [b"204", b"401"]),
    ],
    ids=["too large", "Connection: close", "HTTP/1.0", "unread"],
)
def test_input_after_the_last_request_of_a_connection_is_ignored(last: bytes, answers: list[bytes]) -> None:
    """It could not be answered, because uvloop raises at a write after write_eof."""
    line = Line()
    line.connection.data_received(request(hit("1")) + last + request(hit("never")) + request(hit("never"))[:-1])
    line.connection.data_received(last)
    while line.store.reports:
        line.store.reports.pop(0)(True)
    assert [answer[9:12] for answer in line.wire.written] == answers
    assert b"never" not in b"".join(kept.value for kept in line.store.hits)
    assert line.wire.closed or line.wire.said_all
    assert line.state.held_bytes == 0


def test_too_many_pipelined_requests_are_answered_up_to_the_limit() -> None:
    """With a full store, answers must not recurse, or many pipelined requests would exceed the recursion limit."""
    line = Line()
    line.connection.data_received(request(hit("1")) * 1000)
    line.store.store = lambda *_: False  # type: ignore[method-assign]
    line.store.reports.pop()(True)
    answers = [answer[9:12] for answer in line.wire.written]
    assert answers == [b"204"] + [b"503"] * (len(answers) - 1)
    assert len(answers) > 64
    assert line.wire.closed
    assert line.state.held_bytes == 0


def test_a_broken_request_at_shutdown_is_answered_and_the_connection_closes() -> None:
    line = Line()
    line.connection.data_received(request(hit("1")) + b"POST /track HTTP/x\r\n\r\n")
    line.connection.drain()
    line.store.reports.pop()(True)
    assert [answer[9:12] for answer in line.wire.written] == [b"204", b"400"]
    assert line.wire.closed


def test_incomplete_bodies_of_all_connections_have_a_common_limit() -> None:
    """Otherwise 10,000 clients could buffer half a megabyte each."""
    state = Line().state
    lines = [Line(state) for _ in range(HELD_BYTES // BODY_BYTES + 1)]
    for line in lines:
        line.connection.data_received(request(b"x" * BODY_BYTES)[:-1])
    last = lines[-1]
    assert last.wire.written[0].startswith(b"HTTP/1.1 503")
    assert not any(line.wire.written for line in lines[:-1])
    assert last.ask(request(hit("1"))) == b"503"  # which is not read any more
    whole = Line(state)
    whole.connection.data_received(request(hit("1", pad="x" * 50_000)))  # nothing of it waits
    assert whole.wire.written == []
    assert len(whole.store.hits) == 1
    for line in lines:
        line.connection.connection_lost(None)
    assert state.held_bytes == 0
    assert Line(state).ask(request(hit("1"))) == b"204"


def test_queued_requests_count_as_held_bytes() -> None:
    line = Line()
    line.connection.data_received(request(hit("1")) + request(hit("2")) + request(hit("3"))[:-1])
    assert line.state.held_bytes == len(hit("2")) + len(hit("3")) - 1
    assert line.ask(request(hit("3"))[-1:]) == b"204"
    assert line.state.held_bytes == 0


def test_a_client_that_has_closed_its_half_is_answered() -> None:
    line = Line()
    line.connection.data_received(request(hit("1")) + request(hit("2"))[:-1])
    assert line.connection.eof_received()
    line.store.reports.pop()(True)
    assert [answer[9:12] for answer in line.wire.written] == [b"204"]
    assert line.wire.closed


def test_a_client_that_closes_without_open_requests_is_closed() -> None:
    line = Line()
    line.ask(request(hit("1")))
    assert not line.connection.eof_received()


def test_a_client_that_still_sends_can_read_its_answer() -> None:
    line = Line()
    data = request(b"x" * 1_000_000)
    for start in range(0, len(data), 100_000):
        line.connection.data_received(data[start : start + 100_000])
    assert [b"too_large" in answer for answer in line.wire.written] == [True]
    assert line.wire.said_all
    assert not line.wire.closed
    assert not line.connection.busy
    line.connection.sweep(time.monotonic() + LINGER_SECONDS + 0.1)
    assert line.wire.closed


def test_input_after_a_refused_request_does_not_close_before_the_client_reads_its_answer() -> None:
    line = Line()
    broken = CHUNKED.replace(_HOST, _HOST * 2) + chunked(hit("1")) + b"X: " + b"y" * HEADER_BYTES + b"\r\n\r\n"
    line.connection.data_received(broken)
    assert (statuses(line), line.wire.said_all, line.wire.closed) == ([b"400"], True, False)
    line = Line()
    line.connection.data_received(request(hit("1")) + b"POST /track HTTP/1.1\r\n")
    line.connection.data_received(b"no header\r\n" + b"y" * HEADER_BYTES)
    line.store.reports.pop()(True)
    assert (statuses(line), line.wire.said_all, line.wire.closed) == ([b"204", b"400"], True, False)


def test_an_upgrade_header_is_ignored() -> None:
    """Java's HttpClient sends it with every request over plain HTTP."""
    line = Line()
    offering = request(hit("1"), *H2C)
    assert line.ask(offering) == b"204"
    assert line.ask(request(hit("2"))) == b"204"
    for byte in range(len(offering) - 1):
        line.connection.data_received(offering[byte : byte + 1])
    assert line.ask(offering[-1:]) == b"204"
    assert (
        line.ask(CHUNKED.replace(b"Host", "\r\n".join(H2C).encode() + b"\r\nHost") + chunked(hit("4")) + b"\r\n")
        == b"204"
    )
    line.connection.data_received(request(hit("5"), *H2C) * 2 + request(hit("6"), *H2C, token="guess"))
    while line.store.reports:
        line.store.reports.pop(0)(True)
    assert [answer[9:12] for answer in line.wire.written[-3:]] == [b"204", b"204", b"401"]
    assert [kept.value for kept in line.store.hits] == [hit(name) for name in ("1", "2", "1", "4", "5", "5")]
    assert not line.wire.closed


@pytest.mark.parametrize(
    ("start", "allowed"),
    [
        (b"PUT /track", b"POST, OPTIONS"),
        (b"PUT /ds/stream", b"GET, POST, OPTIONS"),
        (b"POST /openapi.json", b"GET, HEAD, OPTIONS"),
        (b"FOO /track", b"GET, POST, OPTIONS"),
    ],
)
def test_a_wrong_method_is_answered_with_the_allowed_ones(start: bytes, allowed: bytes) -> None:
    line = Line()
    assert line.ask(start + b" HTTP/1.1\r\nHost: x\r\n\r\n") == b"405"
    assert b"\r\nAllow: %b\r\n" % allowed in line.wire.written[0]
    assert b'"use %b"' % allowed in line.wire.written[0]


def test_connect_is_refused_and_the_connection_closes() -> None:
    line = Line()
    line.connection.data_received(b"CONNECT /track HTTP/1.1\r\nHost: x\r\n\r\n" + request(hit("1")))
    assert [answer[9:12] for answer in line.wire.written] == [b"405"]
    assert line.wire.closed
    assert line.store.hits == []


@pytest.mark.parametrize("path", ["/track", "/nowhere"])
def test_an_answer_to_head_has_no_body(path: str) -> None:
    line = Line()
    line.connection.data_received(request(b"", path=path).replace(b"POST", b"HEAD"))
    head, _, body = line.wire.written[-1].partition(b"\r\n\r\n")
    assert b"Content-Length: " in head
    assert body == b""


@pytest.mark.parametrize(
    ("start", "answer"),
    [
        (b"OPTIONS * ", b"204"),
        (b"GET * ", b"404"),
        (b"GET http://x ", b"404"),
        (b"POST http://x/ds/stream ", b"204"),
        (b"POST /ds/stream/ ", b"204"),
        (b"POST /ds/other/stream ", b"404"),
        (b"POST /ds/ ", b"404"),
    ],
)
def test_targets_of_all_forms_are_answered(start: bytes, answer: bytes) -> None:
    line = Line()
    line.tokens.replace({"shop": ProjectConfig(data_streams=["stream"])})
    assert line.ask(start + b"HTTP/1.1\r\nHost: x\r\n\r\n") == answer


def test_an_internal_error_is_answered_and_later_requests_are_served(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(body: bytes, *_: Any) -> Any:
        raise ValueError(body)

    line = Line()
    waiting = request(hit("1")) + request(b"secret", path="/faulty") + request(hit("3"))
    endpoint = line.state.endpoints.find(b"/track")
    assert endpoint is not None
    line.state.endpoints._paths = {b"/track": endpoint, b"/faulty": replace(endpoint, name="/faulty", accept=faulty)}
    line.connection.data_received(waiting)
    while line.store.reports:
        line.store.reports.pop(0)(True)
    assert [answer[9:12] for answer in line.wire.written] == [b"204", b"400", b"204"]
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text
