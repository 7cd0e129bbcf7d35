"""Validation of hits (contract.md, section 1)."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.hit import decode_hit
from pipeline.codec.hit_text import BODY_BYTES, DEPTH, NODES
from pipeline.errors import InvalidHit


def hit(**members: object) -> bytes:
    return json.dumps({"event": {"name": "E", "user": {"userId": "u"}}, **members}).encode()


def refused(body: bytes) -> tuple[str, str]:
    with pytest.raises(InvalidHit) as caught:
        decode_hit(body)
    assert caught.value.message
    return caught.value.reason, caught.value.path


def nested(levels: int) -> bytes:
    return b'{"event":{"user":{"userId":"u"}},"x":' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing",
        b"[]",
        b'"text"',
        b"\xef\xbb\xbf" + hit(),
        hit() + b"x",
        b'{"event":{"user":{"userId":"u"}},"x":NaN}',
        b'{"event":{"user":{"userId":"u"}},"x":-Infinity}',
        b'{"event":{"user":{"userId":"u"}},"x":01}',
        b'{"event":{"user":{"userId":"u"}},"x":"\\ud800 lone"}',
        b'{"event":{"user":{"userId":"u"}},"x":"\\udc00"}',
        b'{"event":{"user":{"userId":"u"}},"x":"\xff"}',
        b'{"event":{"user":{"userId":"u"}},"x":"\xed\xa0\x80"}',
        b'{"event":{"user":{"userId":"u"}},"\xc0\x80":1}',
        b'{"event":{"user":{"userId":"u"}},"x":"\x01"}',
        b'{"event":{"user":{"userId":"u"}},}',
        nested(DEPTH),
        nested(5000),
        hit(x=list(range(NODES))),
    ],
)
def test_json_that_is_not_strict_is_refused(body: bytes) -> None:
    assert refused(body) == ("invalid_json", "")


def test_the_deepest_nesting_that_is_allowed_passes() -> None:
    assert decode_hit(nested(DEPTH - 1)).identity == "u"


def test_the_largest_number_of_values_passes() -> None:
    # the root, event, user, userId, name and x stand beside the items
    assert decode_hit(hit(x=list(range(NODES - 6)))).identity == "u"
    assert refused(hit(x=list(range(NODES - 5)))) == ("invalid_json", "")


def test_the_size_limit_is_exact() -> None:
    padding = BODY_BYTES - len(hit(x=""))
    assert decode_hit(hit(x="a" * padding)).identity == "u"
    assert refused(hit(x="a" * (padding + 1))) == ("too_large", "")


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"event": []}, "event"),
        ({"event": None}, "event"),
        ({"event": {}}, "event.user"),
        ({"event": {"user": {"userId": " "}}, "anonymousId": ""}, "event.user"),
        ({"event": {"user": {"userId": True}}}, "event.user"),
        ({"context": []}, "context"),
        ({"integrations": []}, "integrations"),
        ({"integrations": {"All": {}}}, "integrations.All"),
        ({"integrations": {"Webhook": "false"}}, "integrations.Webhook"),
        ({"hitId": ""}, "hitId"),
        ({"hitId": "x" * 257}, "hitId"),
        ({"hitId": {}}, "hitId"),
    ],
)
def test_an_invalid_hit_is_refused_with_its_path(members: dict[str, object], path: str) -> None:
    assert refused(hit(**members)) == ("invalid_hit", path)


def test_a_missing_event_is_refused() -> None:
    assert refused(b'{"userId": "u"}') == ("invalid_hit", "event")


@pytest.mark.parametrize(
    ("body", "user", "anonymous"),
    [
        ({"event": {"user": {"userId": "a", "anonymousId": "b"}}, "userId": "c"}, "a", "b"),
        ({"event": {"user": {"anonymousId": "b"}}, "userId": "c"}, None, "b"),
        ({"event": {"user": "text"}, "userId": "c"}, "c", None),
        ({"event": {}, "anonymousId": "d"}, None, "d"),
        ({"event": {}, "user": "e"}, "e", None),
        ({"event": {}, "user": {"userId": "f"}}, "f", None),
        ({"event": {"user": {"userId": 12345678901234567890123}}}, "12345678901234567890123", None),
        ({"event": {"user": {"userId": None, "anonymousId": "b"}}}, None, "b"),
    ],
)
def test_identity_comes_from_the_first_place_that_has_one(
    body: dict[str, object], user: str | None, anonymous: str | None
) -> None:
    decoded = decode_hit(json.dumps(body).encode())
    assert (decoded.user_id, decoded.anonymous_id, decoded.identity) == (user, anonymous, user or anonymous)


@pytest.mark.parametrize(("sent", "read"), [("x" * 256, "x" * 256), (7, "7"), (None, None)])
def test_a_hit_id_is_a_text_or_a_number(sent: object, read: str | None) -> None:
    assert decode_hit(hit(hitId=sent)).hit_id == read


def test_the_bytes_of_the_event_are_kept() -> None:
    body = b'{"event": { "user": {"userId":"u"},  "n": 123456789012345678901234567890, "d": 1, "f": 1e999} }'
    assert decode_hit(body).event == body[10:-2]


def test_unknown_members_are_kept_and_reserved_ones_dropped() -> None:
    extra = decode_hit(hit(type="track", projectId="forged", options={})).extra
    assert extra == [("type", b'"track"')]


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
    max_leaves=20,
)


@given(_values)
def test_any_event_survives(payload: object) -> None:
    try:
        text = json.dumps({"event": {"user": {"userId": "u"}, "payload": payload}}, ensure_ascii=False)
        body = text.encode()
    except UnicodeEncodeError:
        return
    assert json.loads(bytes(decode_hit(body).event))["payload"] == payload


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidHit):
        decode_hit(body)


@pytest.mark.parametrize("broken", [b'"\\ud800"', b'{"a" 1}', b"[NaN]"])
def test_a_number_beyond_a_float_hides_no_other_error(broken: bytes) -> None:
    body = b'{"event":{"user":{"userId":"u"},"n":1e999,"escaped":"\\u0041","x":' + broken + b"}}"
    with pytest.raises(InvalidHit, match="invalid_json"):
        decode_hit(body)
