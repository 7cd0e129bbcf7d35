"""Enrichment and the routed hit (contract.md, sections 2 and 4)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.hit import decode_hit
from pipeline.codec.routed_hit import encode_routed_hit, normal_time, read_time, time_text, with_options
from pipeline.config.models import EnrichConfig, IpConfig
from pipeline.stages.enrich import Enricher, RequestFacts


def only_ip(**ip: bool) -> Enricher:
    return Enricher(EnrichConfig(ip=IpConfig(**ip)), [])


def enriched(context: dict[str, Any], request_ip: str | None = "192.0.2.77", **ip: bool) -> dict[str, Any]:
    raw = json.dumps(context).encode()
    result: dict[str, Any] = json.loads(only_ip(**ip)(raw, RequestFacts(request_ip)).context)
    return result


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({}, {"ip": "192.0.2.77"}),
        ({"a": 1}, {"a": 1, "ip": "192.0.2.77"}),
        ({"ip": None}, {"ip": "192.0.2.77"}),
        ({"ip": "198.51.100.9"}, {"ip": "198.51.100.9"}),
        ({"ip": "8.8.8.888"}, {"ip": "8.8.8.888", "flags": ["ip_invalid"]}),
        ({"ip": 5}, {"ip": 5, "flags": ["ip_invalid"]}),
        ({"ip": "x", "flags": "mine"}, {"ip": "x", "flags": "mine"}),
    ],
)
def test_the_clients_ip_wins_and_an_invalid_one_is_flagged(context: dict[str, Any], expected: dict[str, Any]) -> None:
    assert enriched(context) == expected


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("198.51.100.9", "198.51.100.0"),
        ("::ffff:198.51.100.9", "198.51.100.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        (None, "192.0.2.0"),
    ],
)
def test_an_anonymised_ip_leaves_no_trace(sent: str | None, stored: str) -> None:
    raw = json.dumps({"ip": sent, "a": 1}).encode()
    result = only_ip(anonymize=True)(raw, RequestFacts("192.0.2.77")).context
    assert json.loads(result) == {"ip": stored, "a": 1}
    assert sent is None or sent.encode() not in result


@pytest.mark.parametrize("mapped", ["::ffff:198.51.100.9", "::FFFF:c633:6409", "0:0:0:0:0:ffff:198.51.100.9"])
def test_an_address_of_a_dual_stack_listener_is_the_ipv4_address(mapped: str) -> None:
    assert enriched({"ip": mapped, "a": 1}) == {"ip": "198.51.100.9", "a": 1}
    assert enriched({}, request_ip=mapped) == {"ip": "198.51.100.9"}
    assert enriched({}, request_ip=mapped, anonymize=True) == {"ip": "198.51.100.0"}


def test_the_request_ip_can_be_switched_off() -> None:
    assert enriched({}, from_request=False) == {}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("2026-11-24T10:15:30.123Z", "2026-11-24T10:15:30.123Z"),
        ("2026-11-24T10:15:30+03:00", "2026-11-24T07:15:30.000Z"),
        ("2026-11-24T10:15:30.5", "2026-11-24T10:15:30.500Z"),
        ("2026-11-24", "2026-11-24T00:00:00.000Z"),
        ("2026-W48-2T10:15:30.123Z", "2026-11-24T10:15:30.123Z"),
        ("0099-01-02T03:04:05.678Z", "0099-01-02T03:04:05.678Z"),
        ("2026-11-24 10:15:30", "2026-11-24T10:15:30.000Z"),
        ("2026-11-24t10:15", "2026-11-24T10:15:00.000Z"),
        ("20261124T101530Z", "2026-11-24T10:15:30.000Z"),
        ("2026W482T101530,5Z", "2026-11-24T10:15:30.500Z"),
        ("2026-W48", "2026-11-23T00:00:00.000Z"),
    ],
)
def test_times_are_read_as_iso_8601_and_written_in_utc(text: str, normal: str) -> None:
    time_ms = read_time(text)
    assert time_ms is not None
    assert time_text(time_ms) == normal_time(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("1795110112345", "2026-11-19T17:41:52.345Z"),  # fromisoformat: 1795-11-01, a separator, 23:45
        ("1795110112", "2026-11-19T17:41:52.000Z"),
        ("1795110112.3456789", "2026-11-19T17:41:52.346Z"),
        ("1795110112345.6677", "2026-11-19T17:41:52.346Z"),
        ("1.795110112345E12", "2026-11-19T17:41:52.345Z"),
        ("1.795110112e9", "2026-11-19T17:41:52.000Z"),
    ],
)
def test_seconds_and_milliseconds_since_1970_are_times(text: str, normal: str) -> None:
    assert normal_time(text) == normal
    for sent in (text.encode(), json.dumps(text).encode()):  # a number, and a text
        assert decode_hit(b'{"event":{"user":{"userId":"u"}},"sentAt":' + sent + b"}").sent_at == text


@given(st.integers(10**9, 10**10 - 1), st.integers(0, 999))
def test_a_unix_time_is_not_read_as_a_date(seconds: int, ms: int) -> None:
    assert read_time(f"{seconds}") == seconds * 1000
    assert read_time(f"{seconds}{ms:03d}") == read_time(f"{seconds}.{ms:03d}") == seconds * 1000 + ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "17951101",  # a date, or a counter?
        "179551530",
        "17955153301",
        "1795515330123456",
        "-1795515330",
        "0795515330",
        "1.795515330123E15",
        "1795110112345Z",
        "2026-11-2410:15:30",
        "2026-11-24_10:15:30",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "9999-12-31T23:59:59.9999999Z",
        "0001-01-01T00:00:00+14:00x",
        "2026-11-24T10:15:60.123Z",
        "2026-11-24T10:15:30.12xZ",
    ],
)
def test_an_unreadable_time_is_none(text: str) -> None:
    assert read_time(text) is None
    assert normal_time(text) is None


def test_a_routed_hit_holds_the_clients_bytes_and_the_servers_facts() -> None:
    body = b'{"event": {"user":{"userId":7}, "n": 1.0},"integrations":{"All":true},"type":"x"}'
    plain = encode_routed_hit(decode_hit(body), 'h"1', "shop", "R", "S", b'{"ip":"i"}')
    routed = json.loads(with_options(plain, b'{"o":1}'))
    assert list(routed) == [
        *("hitId", "projectId", "receivedAt", "sentAt", "userId", "event", "context", "integrations", "type", "options")
    ]
    assert (routed["hitId"], routed["userId"], routed["options"]) == ('h"1', "7", {"o": 1})
    assert b'{"user":{"userId":7}, "n": 1.0}' in plain
    assert "options" not in json.loads(with_options(plain, None))
