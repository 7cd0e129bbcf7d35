"""Normalised paths, and write keys in URLs (contract.md, section 1)."""

from __future__ import annotations

import json

import pytest

from pipeline.config import ProjectConfig
from pipeline.intake.request_url import key_of_settings, plain_path, write_key
from tests.roles import hit
from tests.unit.intake_line import Line, request

BATCH = json.dumps({"batch": [{"type": "track", "event": "E", "userId": "u", "messageId": "b1"}]}).encode()


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        (b"/v1/batch", b"/v1/batch"),
        (b"//v1/batch", b"/v1/batch"),
        (b"/v1/batch/", b"/v1/batch"),
        (b"///v1//batch///", b"/v1/batch"),
        (b"/", b"/"),
        (b"//", b"/"),
        (b"", b""),
        (b"/ds/%2F/", b"/ds/%2F"),
        (b"/ds/./a", b"/ds/./a"),
    ],
)
def test_repeated_and_trailing_slashes_are_removed(path: bytes, plain: bytes) -> None:
    assert plain_path(path) == plain


@pytest.mark.parametrize("path", ["//v1/batch", "/v1/batch/", "/v1//batch", "//v1/batch//"])
def test_a_path_with_extra_slashes_is_served_and_authorized_as_the_plain_one(path: str) -> None:
    line = Line()
    assert line.ask(request(BATCH, path=path)) == b"200"
    assert dict(line.store.hits[0].headers)["endpoint"] == b"/v1/batch"
    assert line.ask(request(BATCH, path=path, token="guess")) == b"401"
    assert line.ask(request(hit("1"), path="//track/", token="guess")) == b"401"


@pytest.mark.parametrize(("path", "status"), [("//ds//stream/", b"204"), ("//ds//guess/", b"404"), ("//ds/", b"404")])
def test_a_data_stream_is_known_by_its_plain_path(path: str, status: bytes) -> None:
    line = Line()
    line.tokens.replace({"shop": ProjectConfig(data_streams=["stream"])})
    assert line.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) == status


@pytest.mark.parametrize(
    "path", [b"//ds//guessed", b"/v1/projects/guessed/settings", b"//v1//projects/guessed/settings"]
)
def test_a_key_in_a_refused_path_is_not_shown(path: bytes) -> None:
    line = Line()
    for version in (b"1.1", b"2.0"):
        line = Line(line.state)
        line.ask(b"GET " + path + b" HTTP/" + version + b"\r\nHost: x\r\n\r\n")
    shown = line.state.refused.lines()
    assert shown.count(b"***") == 2
    assert b"guessed" not in shown


class TestBeacon:
    def beacon(self, query: str, *headers: str) -> tuple[bytes, Line]:
        line = Line()
        line.tokens.replace({"shop": ProjectConfig(public_keys=["page-key"])})
        head = [f"POST /beacon/v1/batch{query} HTTP/1.1", "Host: x", "Content-Type: text/plain;charset=UTF-8", *headers]
        status = line.ask("\r\n".join([*head, f"Content-Length: {len(BATCH)}", "", ""]).encode() + BATCH)
        return status, line

    def test_the_write_key_is_in_the_query(self) -> None:
        status, line = self.beacon("?writeKey=page-key")
        assert status == b"200"
        assert line.wire.written[-1].endswith(b'{"success":true}')
        assert line.store.hits[0].key == b"shop/b1"

    @pytest.mark.parametrize(
        "query", ["?writeKey=guess", "?writeKey=", "", "?writekey=page-key", "?xwriteKey=page-key"]
    )
    def test_without_a_known_key_it_is_401(self, query: str) -> None:
        status, line = self.beacon(query)
        assert (status, line.store.hits) == (b"401", [])

    def test_an_unknown_key_is_refused_before_the_body(self) -> None:
        line = Line()
        head = b"POST /beacon/v1/batch?writeKey=guess HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        assert line.ask(head) == b"401"


@pytest.mark.parametrize(
    ("query", "key"),
    [
        (b"writeKey=a", "a"),
        (b"x=1&writeKey=a%2Bb&y", "a+b"),
        (b"writeKey=a&writeKey=b", "b"),
        (b"", ""),
        (b"writeKey", ""),
    ],
)
def test_write_keys_in_queries(query: bytes, key: str) -> None:
    assert write_key(b"/", query) == key


def test_keys_of_settings() -> None:
    assert key_of_settings(b"/v1/projects/a%2Fb/settings") == "a/b"
    assert key_of_settings(b"/v1/projects//settings") == key_of_settings(b"/v1/projects/a/settings/b") == ""
