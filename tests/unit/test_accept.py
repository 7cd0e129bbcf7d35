"""The dialects of the intake (contract.md, section 1)."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import pytest

from pipeline.codec.hit import decode_hit
from pipeline.config import KafkaConfig
from pipeline.stages.accept import (
    Accepted,
    CollectRules,
    Origins,
    Refusal,
    Request,
    Sender,
    accept_batch,
    accept_collected,
    accept_data_stream,
    accept_hit,
    accept_message,
)
from pipeline.stages.accept.segment import BATCH_BYTES, MESSAGES
from pipeline.stages.classify import Dead, classify_raw

RANDOM = bytes


def request(**changes: Any) -> Request:
    known = {
        "sender": Sender("shop", False),
        "endpoint": "/track",
        "content_type": "application/json",
        "received_at_ms": 1_700_000_000_000,
        "request_ip": "203.0.113.9",
        "user_agent": "agent/1",
    }
    return Request(**{**known, **changes})


def hit(**changes: Any) -> bytes:
    return json.dumps({"hitId": "1", "event": {"name": "E", "user": {"userId": "u"}}, **changes}).encode()


def one(outcome: object) -> Accepted:
    assert isinstance(outcome, Accepted), outcome
    return outcome


def refused(outcome: object) -> Refusal:
    assert isinstance(outcome, Refusal), outcome
    return outcome


def key_of(write_key: str, origin: str) -> Sender | Refusal | None:
    return {"shop-key": Sender("shop", False), "shop-page": Sender("shop", True)}.get(write_key)


def rules(*origins: str, enabled: bool = True) -> CollectRules:
    return CollectRules("blog", enabled, Origins(origins or ["*"]))


def test_the_bytes_of_a_hit_are_kept() -> None:
    record = one(accept_hit(hit(extra=1), request(), RANDOM))
    assert (record.key, record.value, record.project) == (b"shop/1", hit(extra=1), "shop")


class TestCollected:
    def test_the_body_names_the_project(self) -> None:
        body = hit(projectId="blog")
        sent = request(sender=Sender("", True), content_type="text/plain;charset=UTF-8")
        record = one(accept_collected(body, sent, RANDOM, {"blog": rules()}))
        assert (record.key, record.value) == (b"blog/1", body)
        assert ("project", b"blog") in record.headers

    @pytest.mark.parametrize("named", [{}, {"projectId": "none"}, {"projectId": 5}, {"projectId": None}])
    def test_an_unknown_project_is_refused_with_its_path(self, named: dict[str, Any]) -> None:
        found = refused(accept_collected(hit(**named), request(sender=Sender("", True)), RANDOM, {"blog": rules()}))
        assert (found.status, found.code, found.path) == (400, "invalid_hit", "projectId")

    def test_a_form_is_refused(self) -> None:
        sent = request(content_type="application/x-www-form-urlencoded")
        assert refused(accept_collected(hit(), sent, RANDOM, {"shop": rules()})).code == "invalid_content_type"


class TestDataStream:
    def event(self, body: bytes, **changes: Any) -> tuple[Accepted, dict[str, Any]]:
        record = one(accept_data_stream(body, request(endpoint="/ds", **changes), RANDOM))
        decode_hit(record.value)
        stored: dict[str, Any] = json.loads(record.value)
        assert stored["event"]["name"] == "Data Stream"
        assert record.key == f"shop/{stored['hitId']}".encode()
        return record, stored

    def test_json_is_kept_parsed_and_raw(self) -> None:
        body = b'{"userId": 7, "hitId": "d1", "n": 12345678901234567890123}'
        record, stored = self.event(body)
        assert stored["hitId"] == "d1"
        assert stored["event"]["user"] == {"userId": "7"}
        assert stored["event"]["payload"] == {"body": json.loads(body), "raw": body.decode()}
        assert body in record.value

    def test_a_form_becomes_fields(self) -> None:
        _, stored = self.event(b"a=1&a=2&b=", content_type="application/x-www-form-urlencoded")
        assert stored["event"]["payload"] == {"body": {"a": ["1", "2"], "b": ""}, "raw": "a=1&a=2&b="}

    def test_a_query_alone_is_a_hit(self) -> None:
        record, stored = self.event(b"", query="anonymousId=x&v=%C3%A9", content_type="")
        assert stored["event"]["payload"] == {"query": {"anonymousId": "x", "v": "é"}}
        assert stored["event"]["user"] == {"anonymousId": "x"}
        assert ("generated", b"hitId") in record.headers

    @pytest.mark.parametrize("body", [b"plain words", b'{"broken', b"[" * 60 + b"]" * 60, b'{"a": NaN}', b""])
    def test_a_body_that_is_not_json_is_kept_as_text(self, body: bytes) -> None:
        record, stored = self.event(body, content_type="text/plain")
        assert stored["event"]["payload"] == ({"raw": body.decode()} if body else {})
        assert stored["event"]["user"] == {"anonymousId": stored["hitId"]}
        assert ("generated", b"hitId,anonymousId") in record.headers

    def test_bytes_are_kept_as_base64(self) -> None:
        _, stored = self.event(b"\xff\xfe\x00")
        assert base64.b64decode(stored["event"]["payload"]["rawBase64"]) == b"\xff\xfe\x00"

    def test_a_body_too_large_for_a_hit_is_refused(self) -> None:
        assert refused(accept_data_stream(b'"' * 40_000, request(), RANDOM)).code == "too_large"

    def test_a_long_json_body_is_kept_once(self) -> None:
        _, stored = self.event(json.dumps({"a": "x" * 40_000}).encode())
        assert set(stored["event"]["payload"]) == {"raw"}


class TestSegment:
    def message(self, body: dict[str, Any], kind: str, **changes: Any) -> dict[str, Any]:
        record = one(accept_message(json.dumps(body).encode(), request(**changes), RANDOM, key_of, kind))
        decode_hit(record.value)
        stored: dict[str, Any] = json.loads(record.value)
        return stored

    def test_a_track_message_becomes_a_hit(self) -> None:
        stored = self.message(
            {
                "messageId": "m1",
                "type": "track",
                "event": "Order Completed",
                "userId": "u",
                "anonymousId": "a",
                "properties": {"revenue": 12.50},
                "timestamp": "2026-01-01T00:00:00Z",
                "sentAt": "2026-01-01T00:00:01Z",
                "context": {"ip": "203.0.113.1"},
                "integrations": {"All": False},
                "writeKey": "shop-key",
            },
            "track",
            sender=Sender("", True),
        )
        assert stored == {
            "hitId": "m1",
            "sentAt": "2026-01-01T00:00:01Z",
            "event": {
                "name": "Order Completed",
                "type": "track",
                "user": {"userId": "u", "anonymousId": "a"},
                "properties": {"revenue": 12.50},
                "timestamp": "2026-01-01T00:00:00Z",
            },
            "context": {"ip": "203.0.113.1"},
            "integrations": {"All": False},
        }

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("page", "Viewed Page"),
            ("screen", "Viewed Screen"),
            ("identify", "Identify"),
            ("group", "Group"),
            ("alias", "Alias"),
        ],
    )
    def test_other_types_have_their_own_event_names(self, kind: str, name: str) -> None:
        event = self.message({"userId": "u", "name": "Home", "user": {"userId": "x"}}, kind)["event"]
        assert event == {
            "name": name,
            "type": kind,
            "user": {"userId": "u"},
            "title": "Home",
            "sender": {"userId": "x"},
        }

    def test_a_renamed_member_does_not_replace_another_member(self) -> None:
        body = {"userId": "u", "name": "Home", "title": "T", "user": {"id": 1}, "sender": {"id": 2}, "sender_": 3}
        event = self.message(body, "page")["event"]
        assert (event["title"], event["title_"]) == ("T", "Home")
        assert (event["sender"], event["sender_"], event["sender__"]) == ({"id": 2}, 3, {"id": 1})

    @pytest.mark.parametrize(
        ("body", "status", "code", "path"),
        [
            (b"no", 400, "invalid_json", ""),
            (b"[]", 400, "invalid_json", ""),
            (b'{"userId": "u"}', 400, "invalid_hit", "event"),
            (b'{"event": "E"}', 400, "invalid_hit", "event.user"),
            (b'{"event": "E", "userId": "u", "integrations": {"A": 1}}', 400, "invalid_hit", "integrations.A"),
        ],
    )
    def test_refusals(self, body: bytes, status: int, code: str, path: str) -> None:
        found = refused(accept_message(body, request(), RANDOM, key_of, "track"))
        assert (found.status, found.code, found.path) == (status, code, path)

    def test_a_wrong_write_key_is_401(self) -> None:
        body = b'{"writeKey": "wrong", "event": "E", "userId": "u"}'
        assert refused(accept_message(body, request(sender=Sender("", True)), RANDOM, key_of, "track")).status == 401
        assert refused(accept_batch(b'{"batch": []}', request(sender=Sender("", True)), RANDOM, key_of)).status == 401

    def test_one_invalid_message_does_not_affect_the_others(self) -> None:
        messages = [
            {"type": "track", "event": "E", "userId": "u", "messageId": "good"},
            {"type": "track", "userId": "u"},
            {"type": "nonsense", "userId": "u"},
            "no object",
        ]
        body = json.dumps({"batch": messages, "context": {"shared": 1}, "sentAt": "2026-01-01T00:00:00Z"}).encode()
        outcome = accept_batch(body, request(), RANDOM, key_of)
        assert isinstance(outcome, list)
        good, *bad = outcome
        assert good.key == b"shop/good"
        assert json.loads(good.value)["context"] == {"shared": 1}
        assert json.loads(good.value)["sentAt"] == "2026-01-01T00:00:00Z"
        found = [
            classify_raw(record.value, record.key, record.headers, "hits-raw", 0, 0, 1, {"shop"}) for record in bad
        ]
        assert all(isinstance(dead, Dead) for dead in found)
        assert [(dead.reason, dead.path) for dead in found if isinstance(dead, Dead)] == [
            ("invalid_hit", "event"),
            ("invalid_hit", "type"),
            ("invalid_json", ""),
        ]

    def test_a_body_that_is_not_a_batch_is_refused(self) -> None:
        assert refused(accept_batch(b'{"batch": 1}', request(), RANDOM, key_of)).path == "batch"
        assert refused(accept_batch(b"{", request(), RANDOM, key_of)).code == "invalid_json"

    def test_more_messages_than_any_client_sends_at_once_are_refused(self) -> None:
        for count, status in ((MESSAGES, None), (MESSAGES + 1, 400)):
            body = b'{"batch": [' + b",".join([b"1"] * count) + b"]}"
            outcome = accept_batch(body, request(), RANDOM, key_of)
            assert (refused(outcome).status if isinstance(outcome, Refusal) else None) == status
            assert status is None or (refused(outcome).code, refused(outcome).path) == ("too_large", "batch")

    def test_shared_members_of_a_batch_have_a_limit(self) -> None:
        message = {"type": "track", "event": "E", "userId": "u"}
        body = json.dumps({"batch": [message] * MESSAGES, "context": {"pad": "x" * 10_000}}).encode()
        assert len(body) < BATCH_BYTES
        outcome = refused(accept_batch(body, request(), RANDOM, key_of))
        assert (outcome.code, outcome.path) == ("too_large", "context")
        assert "1572864 bytes" in outcome.message and "fewer messages" in outcome.message

    @pytest.mark.parametrize(
        ("count", "context", "user_agent"),
        [(2_500, 1_000, 0), (2_500, 500, 0), (250, 8_000, 0), (2_500, 0, 8_000), (2_500, 0, 500)],
        ids=["context", "small context", "few messages", "headers", "small headers"],
    )
    def test_records_of_a_batch_have_a_size_limit(self, count: int, context: int, user_agent: int) -> None:
        message = {"type": "track", "event": "E", "userId": "u"}
        body = json.dumps({"batch": [message] * count, "context": {"pad": "x" * context}}).encode()
        outcome = accept_batch(body, request(user_agent="a" * user_agent), RANDOM, key_of)
        if isinstance(outcome, list):
            assert sum(map(record_bytes, outcome)) <= 3 * BATCH_BYTES
        else:
            assert refused(outcome).code == "too_large"

    def test_reasons_of_invalid_messages_count_towards_the_limit(self) -> None:
        message = {"type": "track", "event": "E", "userId": "u", "integrations": {"n" * 120: 5}}
        body = json.dumps({"batch": [message] * MESSAGES}).encode()
        assert len(body) < BATCH_BYTES
        outcome = accept_batch(body, request(), RANDOM, key_of)
        assert isinstance(outcome, Refusal) or sum(map(record_bytes, outcome)) <= 3 * BATCH_BYTES

    def test_the_largest_batch_of_segment_is_accepted(self) -> None:
        message: dict[str, Any] = {"type": "track", "event": "E", "userId": "u", "messageId": "m" * 36}
        message["properties"] = {"pad": "x" * (500_000 // 2_500 - len(json.dumps(message)) - 30)}
        body = json.dumps({"batch": [message] * 2_500}).encode()
        assert 470_000 < len(body) <= 500_000
        browser = request(user_agent="Mozilla/5.0 (Windows NT 10.0; Win64; x64) " + "x" * 100)
        outcome = accept_batch(body, browser, RANDOM, key_of)
        assert isinstance(outcome, list) and len(outcome) == 2_500


def record_bytes(record: Accepted) -> int:
    """Return the bytes of key, value and headers."""
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key) + len(record.value) + headers


@pytest.mark.parametrize("body", [b'{"writeKey": 5}', b'{"batch": [], "writeKey": 5}'])
def test_a_write_key_that_is_not_a_string_is_refused_with_its_path(body: bytes) -> None:
    for found in (
        refused(accept_message(body, request(sender=Sender("", True)), RANDOM, key_of, "track")),
        refused(accept_batch(b'{"batch": [], ' + body[1:], request(sender=Sender("", True)), RANDOM, key_of)),
    ):
        assert (found.status, found.code, found.path) == (400, "invalid_hit", "writeKey")


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("name=caf%E9&x=%C3%A9", {"name": "caf\u00e9", "x": "\u00e9"}),
        ("caf%E9=%80%81&userId=%E9", {"caf\u00e9": "\u20ac\x81", "userId": "\u00e9"}),
    ],
)
def test_bytes_of_a_query_that_are_not_utf_8_are_kept(query: str, fields: dict[str, str]) -> None:
    event = json.loads(one(accept_data_stream(b"", request(query=query), RANDOM)).value)["event"]
    assert event["payload"] == {"query": fields, "rawQuery": query}
    assert event["user"].get("userId") == fields.get("userId")


def test_bytes_of_a_form_that_are_not_utf_8_are_kept() -> None:
    form = request(content_type="application/x-www-form-urlencoded")
    payload = json.loads(one(accept_data_stream(b"name=caf%E9", form, RANDOM)).value)["event"]["payload"]
    assert payload == {"body": {"name": "caf\u00e9"}, "raw": "name=caf%E9"}


def test_a_replacement_character_in_valid_utf_8_is_kept() -> None:
    payload = json.loads(one(accept_data_stream(b"", request(query="v=%EF%BF%BD"), RANDOM)).value)["event"]["payload"]
    assert payload == {"query": {"v": "\ufffd"}}


@pytest.mark.parametrize("query", ["&".join(f"a{number}" for number in range(1001)), "&&"], ids=["many", "none"])
def test_a_query_that_has_no_fields_is_kept_as_text(query: str) -> None:
    payload = json.loads(one(accept_data_stream(b"", request(query=query), RANDOM)).value)["event"]["payload"]
    assert payload == {"rawQuery": query}


def test_the_largest_record_fits_the_smallest_limit_of_kafka() -> None:
    """A larger record would be answered 503 for ever, and block the spilled hits after it."""
    name = "n" * 65_000
    message = '{"type":"track","event":"E","userId":"u","integrations":{"%s":1},"writeKey":"%s"}'
    room = BATCH_BYTES - len('{"batch":[]}' + message % (name, ""))
    body = ('{"batch":[' + message % (name, "w" * room) + "]}").encode()
    agent = (b"\xff" * 8_000).decode(errors="replace")
    outcome = accept_batch(body, request(user_agent=agent), bytes, key_of)
    assert isinstance(outcome, list)
    (record,) = outcome
    assert len(body) == BATCH_BYTES
    size = len(record.key) + len(record.value) + sum(len(name) + len(value) + 20 for name, value in record.headers)
    with pytest.raises(ValueError, match="at least"):
        KafkaConfig(client={"message.max.bytes": size})
    dead = classify_raw(record.value, record.key, record.headers, "hits-raw", 0, 0, 1, {"shop"})
    assert isinstance(dead, Dead)
    assert dead.path.startswith("integrations.nnn")


def test_long_values_of_senders_are_not_cached() -> None:
    def send(number: int) -> None:
        name = f"{number}{'x' * 7_000}"
        body = {"userId": "u", "type": "track", "event": "E", name: 1}
        one(accept_message(json.dumps(body).encode(), request(user_agent=name), RANDOM, key_of, "track"))

    send(0)
    tracemalloc.start()
    try:
        for number in range(50):
            send(number)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000  # remembered, it would be a million and a half
