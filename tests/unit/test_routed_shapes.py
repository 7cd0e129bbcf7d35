"""Formats of routed hits per connection: with dropped fields, and in Avro."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.avro import Framing
from pipeline.codec.drop_fields import FieldDropper
from pipeline.codec.hit import decode_hit
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA, avro_to_routed, routed_to_avro
from pipeline.codec.routed_hit import encode_routed_hit, with_options

HIT = (
    b'{"hitId":"1","userId":"u","event":{"user":{"emailHash":"h","x":1.0},"items":[{"price":1,"q":2},3]},"context":{}}'
)


@pytest.mark.parametrize(
    ("paths", "left"),
    [
        (["event.user.emailHash"], HIT.replace(b'"emailHash":"h",', b"")),
        (["event.items.price"], HIT.replace(b'"price":1,', b"")),
        (["userId", "event.items"], HIT.replace(b'"userId":"u",', b"").replace(b',"items":[{"price":1,"q":2},3]', b"")),
        (["event.user", "event.user.x"], HIT.replace(b'"user":{"emailHash":"h","x":1.0},', b"")),
        (["event.user.x", "event.user"], HIT.replace(b'"user":{"emailHash":"h","x":1.0},', b"")),
        (["event.nope", "nope.a", "hitId.x"], HIT),
    ],
)
def test_a_dropped_field_is_removed_and_nothing_else_changes(paths: list[str], left: bytes) -> None:
    assert FieldDropper(paths).drop(HIT) == left


@pytest.mark.parametrize("path", ["hitId", "event", "context", "", "event..x", ".x"])
def test_required_members_cannot_be_dropped(path: str) -> None:
    with pytest.raises(ValueError, match=r"can't be dropped|names with dots"):
        FieldDropper([path])


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.text(max_size=3), _json, max_size=3),
    st.dictionaries(st.text("xyz", min_size=1, max_size=3), _json, max_size=2),
    st.none() | st.just({"clientId": "é"}),
)
def test_a_routed_hit_survives_a_round_trip_through_avro(event: dict, others: dict, options: dict | None) -> None:  # type: ignore[type-arg]
    body = json.dumps({"event": {**event, "user": {"userId": "u", "anonymousId": "a"}}, **others}).encode()
    plain = encode_routed_hit(
        decode_hit(body), "h", "shop", "2026-11-24T10:15:30.123Z", "2026-11-24T10:15:29.000Z", b'{"ip":"192.0.2.1"}'
    )
    value = with_options(plain, json.dumps(options).encode() if options is not None else None)
    for framing in (Framing(ROUTED_HIT_SCHEMA), Framing(ROUTED_HIT_SCHEMA, 7, lambda number: ROUTED_HIT_SCHEMA)):
        encoded = routed_to_avro(value, framing)
        assert encoded.startswith(framing.header)
        assert json.loads(avro_to_routed(encoded, framing)) == json.loads(value)


@pytest.mark.parametrize("is_public", [True, False])
@pytest.mark.parametrize("sent", [b"", b', "door": "public"', b', "d\\u006for": "secret"', b', "door": {"a": 1}'])
def test_the_member_door_is_set_by_the_server_in_json_and_in_avro(is_public: bool, sent: bytes) -> None:
    body = b'{"hitId": "h", "event": {"user": {"userId": "u"}}' + sent + b"}"
    time = "2026-11-24T10:15:30.123Z"
    plain = encode_routed_hit(decode_hit(body), "h", "shop", time, time, b"{}", is_public)
    framing = Framing(ROUTED_HIT_SCHEMA)
    for value in (plain, avro_to_routed(routed_to_avro(plain, framing), framing)):
        assert json.loads(value).get("door") == ("public" if is_public else None)
        assert value.count(b"door") == is_public


def test_numbers_keep_their_digits_through_avro() -> None:
    """A float would lose digits, or could not hold the number. Event names may be any JSON value."""
    body = b'{"event": {"name": 1e999, "user": {"userId": "u"}}, "price": 1.10, "most": [1e999]}'
    time = "2026-11-24T10:15:30.123Z"
    plain = encode_routed_hit(decode_hit(body), "h", "shop", time, time, b"{}")
    framing = Framing(ROUTED_HIT_SCHEMA)
    value = routed_to_avro(plain, framing)
    assert framing.decode(value)["event_name"] is None
    back = avro_to_routed(value, framing)
    assert all(part in back for part in (b'"name": 1e999', b'"price":1.10', b'"most":[1e999]'))


def test_avro_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="not an Avro value"):
        Framing(ROUTED_HIT_SCHEMA).decode(b"\xc3\x01" + bytes(20))
    with pytest.raises(ValueError, match="not an Avro value"):
        Framing(ROUTED_HIT_SCHEMA).decode(b"\x00\x00\x00\x00\x07abc")
