"""Reads type, name, time, properties, traits, user and page of a hit in both dialects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.destination.message import read_message

RECEIVED = "2026-11-24T10:15:31.000Z"
SENT = "2026-11-24T10:15:30.123Z"
NAMES = ("type", "name", "time", "properties", "traits", "user", "page", "group_id", "previous_id", "is_segment")
USER = {"userId": "u", "anonymousId": "a"}


def read(event: dict[str, Any], context: dict[str, Any] | None = None, sent_at: str = SENT) -> dict[str, Any]:
    message = read_message(event, json.dumps(context or {}).encode(), sent_at, RECEIVED)
    return {name: getattr(message, name) for name in NAMES}


@pytest.mark.parametrize(
    ("event", "context", "expected"),
    [
        pytest.param(
            {"name": "Lead", "user": {**USER, "email": "e"}, "form": 7, "page": {"url": "x", "title": None}},
            {"page": {"url": "y", "title": "T"}},
            {
                "type": "track",
                "name": "Lead",
                "properties": {"form": 7, "page": {"url": "x", "title": None}},
                "traits": {"email": "e"},
                "user": {**USER, "email": "e"},
                "page": {"url": "x", "title": "T"},
                "is_segment": False,
            },
            id="SegmentStream's event",
        ),
        pytest.param(
            {"name": "Viewed Page", "user": USER}, {}, {"type": "page", "is_segment": False}, id="SegmentStream's page"
        ),
        pytest.param({"name": 7, "user": "u"}, {"page": []}, {"name": "", "user": {}, "page": {}}, id="odd types"),
        pytest.param(
            {"name": "Order Completed", "type": "track", "user": USER, "properties": {"total": 5}, "channel": "web"},
            {"traits": {"email": "e"}, "page": {"url": "y"}},
            {
                "type": "track",
                "name": "Order Completed",
                "properties": {"total": 5},
                "traits": {},
                "user": {**USER, "email": "e"},
                "page": {"url": "y"},
                "is_segment": True,
            },
            id="Segment's track",
        ),
        pytest.param(
            {
                "name": "Viewed Page",
                "type": "page",
                "title": "Home",
                "properties": {"url": "x", "search": "?q"},
                "user": USER,
            },
            {"page": {"url": "y", "referrer": "r"}},
            {
                "type": "page",
                "properties": {"name": "Home", "url": "x", "search": "?q"},
                "page": {"title": "Home", "url": "x", "referrer": "r", "search": "?q"},
            },
            id="Segment's page",
        ),
        pytest.param(
            {"name": "Viewed Page", "type": "page", "title": "own", "title_": "Home", "properties": {}, "user": USER},
            {},
            {"type": "page", "properties": {"name": "Home"}, "page": {"title": "Home"}},
            id="Segment's page with a member title",
        ),
        pytest.param(
            {"name": "Viewed Screen", "type": "screen", "title": "Cart", "category": "Shop", "user": USER},
            {},
            {"type": "screen", "properties": {"name": "Cart", "category": "Shop"}, "page": {}},
            id="Segment's screen",
        ),
        pytest.param(
            {"name": "Identify", "type": "identify", "user": USER, "traits": {"email": "new"}, "userProperties": 1},
            {"traits": {"email": "old", "plan": "gold"}},
            {
                "type": "identify",
                "properties": {},
                "traits": {"email": "new", "plan": "gold"},
                "user": {"email": "new", "plan": "gold", **USER},
            },
            id="Segment's identify, with traits in the context as RudderStack sends them",
        ),
        pytest.param(
            {"name": "Group", "type": "group", "user": USER, "groupId": 7, "traits": {"name": "Acme"}},
            {},
            {"type": "group", "group_id": "7", "traits": {"name": "Acme"}, "user": USER},
            id="Segment's group, with traits of the group",
        ),
        pytest.param(
            {"name": "Alias", "type": "alias", "user": USER, "previousId": "old"},
            {},
            {"type": "alias", "previous_id": "old"},
            id="Segment's alias",
        ),
    ],
)
def test_hit_is_read_in_its_dialect(event: dict[str, Any], context: dict[str, Any], expected: dict[str, Any]) -> None:
    found = read(event, context)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    "event",
    [
        {"name": "Lead", "type": "track", "form": 7},
        {"name": "Viewed Page", "type": "page", "page": {"url": "x"}},
        {"name": "Viewed Page", "type": "product", "properties": {}},
        {"name": "Joined", "type": "group", "traits": {}},
        {"name": "Lead", "type": ["track"], "properties": {}},
    ],
)
def test_type_in_segmentstream_dialect_is_an_ordinary_property(event: dict[str, Any]) -> None:
    found = read(event)
    assert not found["is_segment"]
    assert found["properties"]["type"] == event["type"]


@pytest.mark.parametrize(
    ("times", "sent_at", "expected"),
    [
        pytest.param({}, SENT, SENT, id="without time: sentAt"),
        pytest.param({"timestamp": "2026-11-24T10:15:29.000Z"}, SENT, "2026-11-24T10:15:29.877Z", id="corrected"),
        pytest.param(
            {"timestamp": "2026-11-22T11:00:00+01:00"}, RECEIVED, "2026-11-22T10:00:00.000Z", id="two days old"
        ),
        pytest.param(
            {"timestamp": "1970-01-01T00:00:00Z"},
            "1970-01-01T00:00:10.000Z",
            "2026-11-24T10:15:21.000Z",
            id="client clock not set",
        ),
        pytest.param(
            {"originalTimestamp": "2026-11-24T10:15:20.123Z"}, SENT, "2026-11-24T10:15:21.000Z", id="RudderStack"
        ),
        pytest.param(
            {"originalTimestamp": "2026-11-24T09:00:00Z", "timestamp": "2026-11-24T08:00:00Z"},
            SENT,
            "2026-11-24T08:00:00.000Z",
            id="both: timestamp is used",
        ),
        pytest.param({"timestamp": 1_795_515_320}, RECEIVED, "2026-11-24T10:15:20.000Z", id="epoch seconds"),
        pytest.param({"timestamp": "2027-01-01T00:00:00Z"}, SENT, RECEIVED, id="not later than receivedAt"),
        pytest.param({"timestamp": "yesterday"}, SENT, SENT, id="unreadable"),
        pytest.param({"timestamp": True}, SENT, SENT, id="boolean"),
        pytest.param(
            {"timestamp": "0001-01-01T00:00:00Z"},
            "9999-12-31T23:59:59.000Z",
            "0001-01-01T00:00:00.000Z",
            id="out of range",
        ),
    ],
)
def test_time_of_a_segment_message_is_corrected_by_the_client_clock(
    times: dict[str, Any], sent_at: str, expected: str
) -> None:
    assert (
        read({"name": "E", "type": "track", "user": USER, "properties": {}, **times}, sent_at=sent_at)["time"]
        == expected
    )


def test_timestamp_in_segmentstream_dialect_is_not_the_event_time() -> None:
    assert read({"name": "E", "timestamp": "2026-11-22T10:00:00Z"})["time"] == SENT
