"""When two hits with the same hitId have equal content (contract.md, section 1)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.codec.content import content_mark, content_of
from pipeline.codec.hit import decode_hit

HIT: dict[str, Any] = {
    "hitId": "1",
    "sentAt": "2026-11-24T10:15:30.123Z",
    "event": {"name": "Order", "user": {"userId": "u"}, "total": 10},
    "context": {"ip": "203.0.113.9", "page": {"url": "https://shop.example/"}},
    "integrations": {"All": True},
}


def content(body: dict[str, Any], **changes: Any) -> tuple[bytes, int]:
    hit = decode_hit(json.dumps({**body, **changes}).encode())
    mark = content_mark(hit)
    assert 0 < mark < 65_536
    return content_of(hit), mark


@pytest.mark.parametrize(
    "again",
    [
        {"sentAt": "2026-11-24T10:15:31.000Z"},
        {"sentAt": None},
        {"sentAt": "unreadable"},
        {"receivedAt": "2026-11-24T10:15:31.000Z"},
        {"projectId": "shop"},
        {"options": {}},
    ],
)
def test_a_retried_hit_has_equal_content(again: dict[str, Any]) -> None:
    assert content(HIT, **again) == content(HIT)


def test_order_and_white_space_of_top_level_members_are_not_content() -> None:
    turned = dict(reversed(HIT.items()))
    assert content(turned) == content(HIT)
    assert content({**turned, "a": 1, "b": 2}) == content({"b": 2, **HIT, "a": 1})


@pytest.mark.parametrize(
    "other",
    [
        {"event": {**HIT["event"], "total": 11}},
        {"context": {**HIT["context"], "page": {"url": "https://shop.example/cart"}}},
        {"context": {**HIT["context"], "ip": "203.0.113.10"}},
        {"integrations": {"All": False}},
        {"integrations": None},
        {"unknown": 1},
    ],
    ids=["event", "page", "ip by the client's word", "consent", "no integrations", "a member that we don't know"],
)
def test_any_other_value_of_the_client_is_other_content(other: dict[str, Any]) -> None:
    first, second = content(HIT), content(HIT, **other)
    assert first[0] != second[0] and first[1] != second[1]


def test_another_identity_outside_the_event_is_other_content() -> None:
    beside = {**HIT, "event": {"name": "Order"}}
    assert content(beside, userId="a") != content(beside, userId="b")
