"""Requests with a cached head skip the parser, with the same results as the parser."""

from __future__ import annotations

import gc
import random
import re
import weakref

import pytest

from pipeline.config import ProjectConfig
from pipeline.intake.head import Head
from pipeline.intake.known_head import KnownHead
from tests.roles import hit
from tests.unit.intake_line import Line, request

FIRST = request(b"{}")


def read(first: bytes, other: bytes) -> bytes | None:
    """Return the body of `other` with the head of `first` cached; None if the parser is needed."""
    known = KnownHead()
    known.learn(first, Head(keep_alive=True), 0)
    exchange = known.exchange(other, 0)
    return None if exchange is None else bytes(exchange._body)


@pytest.mark.parametrize("body", [b"{}", b"", b'{"a": "\r\n\r\n"}', b"x" * 65_536])
def test_a_request_with_the_known_head_gives_its_body(body: bytes) -> None:
    assert read(FIRST, request(body)) == body


@pytest.mark.parametrize(
    "other",
    [
        request(b"{}", token="new"),
        request(b"{}", "X-More: 1"),
        request(b"{}") + request(b"{}"),
        request(b"{}")[:-1],
        request(b"{}") + b"\r\n",
        request(b"{}").replace(b"Length: 2", b"Length: +2"),
        request(b"{}").replace(b"Length: 2", b"Length: 2 "),
        request(b"{}").replace(b"Length: 2", b"Length: "),
        request(b"{}").replace(b"Length: 2", b"Length: 0000000000002"),
        request(b"{}").replace(b"Length: 2", "Length: ٢".encode()),
        request(b"x" * 65_537),
        FIRST[:40],
        b"",
    ],
)
def test_anything_else_is_left_to_the_parser(other: bytes) -> None:
    assert read(FIRST, other) is None


@pytest.mark.parametrize(
    "first",
    [
        request(b"{}", "Transfer-Encoding: chunked"),
        request(b"{}", "Expect: 100-continue"),
        request(b"{}", "Connection: upgrade", "Upgrade: h2c"),
        request(b"{}", "content-length: 2"),
        request(b"{}", "X-Content-Length: 2"),
        request(b"{}").replace(b"Content-Length: 2", b"X: 2"),
        request(b"{}").replace(b"Content-Length: ", b"Content-Length:\t"),
        request(b"{}").replace(b"Length: 2", b"Length: 2 "),
        b"\r\n" + request(b"{}")[:-1],
        b"GET /ds/x HTTP/1.1\r\n\r\n",
    ],
)
def test_a_head_that_is_not_plain_is_not_cached(first: bytes) -> None:
    assert read(first, first) is None


def test_bytes_after_the_content_length_are_compared_too() -> None:
    one, other = (request(b"{}", f"Authorization: Basic {token}") for token in ("YTo=", "Yjo="))
    assert read(one, one) == b"{}"
    assert read(one, other) is None


def test_a_request_inside_a_body_is_not_executed() -> None:
    line = Line()
    assert line.ask(request(hit("1"))) == b"204"
    inner = request(hit("2"))
    outer = request(inner)
    line.connection.data_received(outer.removesuffix(inner))
    assert line.ask(inner) == b"400"
    assert len(line.store.hits) == 1


def test_nothing_is_read_after_a_known_head_that_closes_the_connection() -> None:
    line = Line()
    line.connection.data_received(request(hit("1"), "Connection: close"))
    line.connection.data_received(request(hit("2"), "Connection: close"))
    line.store.reports.pop()(True)
    assert [kept.value for kept in line.store.hits] == [hit("1")]
    assert [answer[9:12] for answer in line.wire.written] == [b"204"]


def test_a_changed_configuration_invalidates_the_cached_head() -> None:
    line = Line()
    assert [line.ask(request(hit(name))) for name in "12"] == [b"204"] * 2
    line.tokens.replace({"shop": ProjectConfig(tokens=["new"])})
    line.state.version += 1
    assert [line.ask(request(hit(name))) for name in "34"] == [b"401"] * 2


def test_a_closed_connection_needs_no_garbage_collection() -> None:
    line = Line()
    assert [line.ask(request(hit(name))) for name in "12"] == [b"204"] * 2
    gone = weakref.ref(line.connection)
    gc.disable()
    try:
        line.connection.connection_lost(None)
        del line
        assert gone() is None
    finally:
        gc.enable()


def _requests(source: random.Random) -> bytes:
    """Return some requests of a client, mostly with the same head."""
    body = hit(str(source.randrange(1_000)))
    kind = source.randrange(16)
    if kind == 0:
        return request(body, f"X-Request-Id: {source.randrange(9)}")
    if kind == 1:
        return request(body, token="guess")
    if kind == 2:
        return request(body).replace(b"Content-Length: ", source.choice([b"Content-Length: 0", b"Content-Length:"]))
    if kind == 3:
        chunked = request(b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
        return chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    if kind == 4:
        return b"\r\n" + request(body)
    if kind == 5:
        return request(b"x" * source.choice([65_536, 65_537]))
    if kind == 6:
        return request(body[:-1])
    if kind == 7 and not source.randrange(4):
        return request(body).replace(b"Length: ", source.choice([b"Length: +", b"Length: x", b"Length: -"]))
    if kind == 8 and not source.randrange(4):
        host = source.choice([b"", b"Host: x\r\nHost: x\r\n"])
        return request(body).replace(b"Host: x\r\n", host)
    if kind == 9 and not source.randrange(4):
        return request(body).replace(b"HTTP/1.1", source.choice([b"HTTP/0.9", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9"]))
    return request(body)


def _parts(source: random.Random, stream: bytes) -> list[bytes]:
    """Split the data as a network may split it."""
    cuts = sorted(source.randrange(len(stream)) for _ in range(source.choice([0, 0, 0, 1, 3])))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def _played(parts: list[bytes], stored: list[bool]) -> tuple[list[bytes], list[bytes], bool]:
    """Return what was written, what was stored, and whether the connection closed."""
    line = Line()
    answers = iter(stored)
    for part in parts:
        line.connection.data_received(part)
        while line.store.reports:
            line.store.reports.pop(0)(next(answers))
    written = [re.sub(rb"(Retry-After|Date): [^\r]*", b"", answer) for answer in line.wire.written]
    return written, [kept.value for kept in line.store.hits], line.wire.closed


@pytest.mark.parametrize("seed", range(300))
def test_the_head_cache_does_not_change_results(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(seed)
    parts = [
        part
        for _ in range(12)
        for part in _parts(source, b"".join(_requests(source) for _ in range(source.choice([1, 1, 1, 2]))))
    ]
    stored = [source.random() < 0.9 for _ in range(100)]
    with_it = _played(parts, stored)
    monkeypatch.setattr(KnownHead, "learn", lambda *_: None)
    assert with_it == _played(parts, stored)
