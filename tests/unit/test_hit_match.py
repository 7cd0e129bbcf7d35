"""Matching valid and invalid records of a hit in every format."""

from __future__ import annotations

import json

import pytest

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import RAW_HIT_SCHEMA
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA, routed_to_avro
from pipeline.delivery.deliverers import RoutedHits
from pipeline.delivery.examples import routed
from pipeline.operations.hit_match import HitMatch
from pipeline.operations.hits_without_project import Unowned

RAW, ROUTED = Framing(RAW_HIT_SCHEMA), Framing(ROUTED_HIT_SCHEMA)


def match(hit_id: str) -> HitMatch:
    return HitMatch(hit_id, RAW, RoutedHits(ROUTED))


def raw_avro(document: bytes) -> bytes:
    return RAW.encode({"hit": document, "project": "shop", "received_at": None, "request_ip": None, "user_agent": None})


VALUES = [
    b'{"hitId":"h-\\u0031","event":7}',
    b' \n{"hitId": "h-1", "hitId": "h-1"}',
    raw_avro(b'{"hitId":"h-1"}'),
    routed({"hitId": "h-1", "event": {"user": {"userId": "u"}}}).value,
    routed_to_avro(routed({"hitId": "h-1", "event": {"user": {"userId": "u"}}}).value, ROUTED),
]


@pytest.mark.parametrize("value", VALUES)
def test_document_matches_by_hit_id_in_every_format(value: bytes) -> None:
    assert match("h-1").matches(None, value)
    assert not match("h-2").matches(b"u", value)


def test_invalid_message_of_a_batch_matches_by_message_id() -> None:
    """The key contains a generated id, which the sender does not know."""
    assert match("b4").matches(b"shop/01a21eba", b'{"type":"track","messageId":"b4"}', "shop")
    assert not match("b4").matches(b"shop/h-1", b'{"hitId":"h-1","messageId":"b4"}', "shop")


def test_numeric_hit_id_matches_its_digits() -> None:
    assert match("42").matches(None, b'{"hitId": 42}')


def test_key_matches_any_project_unless_one_is_given() -> None:
    assert match("a/b").matches(b"shop/a/b", b"no JSON")
    assert match("h").matches(b"shop/h", None, "shop")
    assert not match("h").matches(b"blog/h", None, "shop")
    assert not match("h").matches(b"h", None)


# fmt: off
UNDECODABLE = [
    None, b"", b"{", b"[1]", b'{"hitId": null}', b'{"hitId": {}}', b"\x00\x01", b"\xc3\x01abc", b"[" * 100_000,
    b'{"a":' + b"[" * 100_000, b"\xff", b'{"\xff":1}', b'{"hitId":"\xff"}',
]
# fmt: on


@pytest.mark.parametrize("value", UNDECODABLE)
def test_undecodable_value_does_not_match(value: bytes | None) -> None:
    assert not match("h").matches(None, value)


def test_unknown_project_is_shown_with_the_most_similar_one() -> None:
    assert Unowned("").why(["shop"]) == "without the header `project`"
    assert Unowned("shopp").why(["shop", "blog"]) == "whose header `project` names 'shopp'; did you mean 'shop'?"
    assert json.dumps(Unowned("a\x1b").why(["x"])).isascii()
