"""Repeated keys in a hit: the router outputs each key once, with its last value (contract.md, section 1)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.avro import Framing
from pipeline.codec.hit import decode_hit
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.codec.unique_keys import unique_keys
from pipeline.config import Config
from pipeline.router.routing import Routing
from pipeline.stages.accept import Accepted, Refusal, Request, Sender, accept_batch
from pipeline.stages.classify import Dead, RawHit, classify_raw

_CONNECTIONS: dict[str, Any] = {
    "whole": {"destination": "Kafka"},
    "fewer": {"destination": "Kafka", "drop_fields": ["event.user.email", "event.items.cost", "more.x", "options.x"]},
    "avro": {"destination": "Kafka", "format": "avro"},
}


@pytest.fixture(scope="module")
def routing(tmp_path_factory: pytest.TempPathFactory) -> Routing:
    plan = tmp_path_factory.mktemp("plans") / "plan.json"
    user = {"properties": {"userId": {"type": "string"}}, "additionalProperties": False}
    plan.write_text(json.dumps({"properties": {"user": user, "value": {"type": "number"}}}))
    projects = {
        kind: {"tracking_plan": {"schema": str(plan), "on_violation": kind}} for kind in ("warn", "strip", "quarantine")
    }
    return Routing(Config.model_validate({"projects": {**projects, "free": {}}, "connections": _CONNECTIONS}))


def read(routing: Routing, body: bytes, project: str = "free") -> RawHit:
    headers = [("project", project.encode()), ("received-at", b"1795515330123"), ("request-ip", b"192.0.2.1")]
    key = f"{project}/{decode_hit(body).hit_id}".encode()
    raw = classify_raw(body, key, headers, "hits-raw", 0, 0, 1, routing.plans)
    assert isinstance(raw, RawHit)
    return raw


def left(routing: Routing, body: bytes, connection: str = "whole", project: str = "free") -> bytes:
    values = routing.values(routing.route(read(routing, body, project), 0))
    return next(value for connections, value in values if connection in connections)


def test_drop_fields_drops_a_field_from_objects_of_repeated_keys(routing: Routing) -> None:
    body = b'{"hitId":"1","event":{"user":{"userId":"u","email":"secret"},"user":{"userId":"u"}}}'
    assert b"secret" not in left(routing, body, "fewer")
    body = b'{"hitId":"1","event":{"user":{"userId":"u"},"items":[{"cost":"secret"}],"items":[{}]}}'
    assert b"secret" not in left(routing, body, "fewer")
    body = b'{"hitId":"1","event":{"user":{"userId":"u"}},"more":{"x":"secret"},"more":{}}'
    assert b"secret" not in left(routing, body, "fewer")
    body = b'{"hitId":"1","event":{"user":{"userId":"u"}},"integrations":{"fewer":{"y":{"z":"secret","\\u007a":1}}}}'
    assert b"secret" not in left(routing, body, "fewer")


@pytest.mark.parametrize("project", ["warn", "strip", "quarantine"])
def test_a_tracking_plan_checks_the_value_that_leaves(routing: Routing, project: str) -> None:
    fine_at_last = b'{"hitId":"1","event":{"user":{"userId":"u"},"value":"secret","value":1}}'
    assert routing.quarantined(read(routing, fine_at_last, project)) is None
    assert b"secret" not in left(routing, fine_at_last, project=project)
    wrong_at_last = fine_at_last.replace(b'"value":"secret","value":1', b'"value":1,"value":"secret"')
    violation = routing.route(read(routing, wrong_at_last, project), 0).violation
    assert violation is not None and violation.path == "event.value"
    assert (routing.quarantined(read(routing, wrong_at_last, project)) is not None) == (project == "quarantine")
    assert (b"secret" in left(routing, wrong_at_last, project=project)) == (project != "strip")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('{"a":1,"a":2}', '{"a":2}'),
        ('{"a":1,"b":2,"a":3}', '{"a":3,"b":2}'),  # where it stood first, as in Python and JavaScript
        ('{"a":1,"\\u0061":2}', '{"a":2}'),
        ('{"\\u003a":1,":":2}', '{":":2}'),
        ('{"\\u003A":1,"x":"::","x":":"}', '{":":1,"x":":"}'),
        ('{"é":1,"\\u00e9":2}', '{"é":2}'),
        ('{"\\ud83d\\ude00":1,"😀":2}', '{"😀":2}'),
        ('{"\\"":1,"\\u0022":2,"\\/":3,"/":4}', '{"\\"":2,"/":4}'),
        ('{"":1,"":2}', '{"":2}'),
        ('{"a":1,"a":null}', '{"a":null}'),
        ('{"a":{"b":1},"a":{"c":2}}', '{"a":{"c":2}}'),
        ('[{"a":[{"b":[[{"c":1,"c":2}]]}]}]', '[{"a":[{"b":[[{"c":2}]]}]}]'),
        ('{ "a" : 1 ,\n"b":{\t"a" :2, "a" : [ 1 , 2 ]}}', '{"a":1,"b":{"a":[1,2]}}'),
        (
            '{"n":[1e2,1.0,-0,-0.0,1E+2,123456789012345678901234567890,1e999],"a":1,"a":-1.50}',
            '{"n":[1e2,1.0,-0,-0.0,1E+2,123456789012345678901234567890,1e999],"a":-1.50}',
        ),
        ('{"a":1,"a":' + "7" * 5000 + "}", '{"a":' + "7" * 5000 + "}"),
        ('{"t":"\\u0041\\/\\n","a":1,"a":"\\u0041"}', '{"t":"\\u0041\\/\\n","a":"\\u0041"}'),
    ],
)
def test_each_key_is_kept_once_with_the_text_of_its_last_value(sent: str, kept: str) -> None:
    assert unique_keys(sent.encode()).decode() == kept


@pytest.mark.parametrize(
    "sent",
    [
        "{}",
        '{ "a" : {"a":[{"a":1},{"a":2}]} , "A":"::" }',
        '{"\\u0061":1,"n":[1e2,1.0,-0]}',
        '{"a":"\\u003a","b":":"}',
        '{"a":1e999}',
        '{"a":' + "7" * 5000 + "}",
        '{"é":1,"e\\u0301":2}',
        '[1,"a",null]',
        '"{\\"a\\":1,\\"a\\":2}"',
    ],
)
def test_without_repeated_keys_no_byte_changes(sent: str) -> None:
    assert unique_keys(sent.encode()) == sent.encode()


_TWICE = b'{"x":[{"k":"first","k":"last"}]}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"hitId":"1","event":{"user":{"userId":"u"},"p":%s}}',
        b'{"hitId":"1","event":{"user":{"userId":"u","p":%s}}}',
        b'{"hitId":"1","event":{"user":{"userId":7},"p":%s}}',
        b'{"hitId":"1","event":{"user":{"userId":"u"},"p":%s,"n":1e999}}',
        b'{"hitId":"1","event":{"user":{"userId":"u"}},"context":{"p":%s}}',
        b'{"hitId":"1","event":{"user":{"userId":"u"}},"context":{"page":{"url":"x","p":%s},"browser":{"p":%s}}}',
        b'{"hitId":"1","event":{"user":{"userId":"u"}},"integrations":{"whole":{"p":%s},"avro":{"p":%s}}}',
        b'{"hitId":"1","event":{"user":{"userId":"u"}},"other":%s}',
        b'{"hitId":"1","event":{},"userId":"u","context":{"p":%s},"integrations":{"avro":{"p":%s}},"other":{"p":%s}}',
        b'{"event":{"p":%s},"event":{"p":%s,"user":{"userId":"u"}},"hitId":"0","hitId":"1","context":1,"context":{}}',
    ],
)
def test_repeated_keys_are_removed_at_every_place_of_a_hit(routing: Routing, body: bytes) -> None:
    sent = body.replace(b"%s", _TWICE)
    raw = read(routing, sent)
    assert raw.hit_id == "1"
    for value in (left(routing, sent), left(routing, sent, "fewer")):
        assert b"first" not in value and json.loads(value, object_pairs_hook=once)["hitId"] == "1"
    columns = Framing(ROUTED_HIT_SCHEMA).decode(left(routing, sent, "avro"))
    texts = [columns[name] for name in ("event", "context", "integrations", "options", "others")]
    assert "first" not in "".join(text or "" for text in texts) and any("last" in (text or "") for text in texts)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    assert len(members) == len(pairs), pairs
    return members


def test_the_last_of_repeated_shared_members_of_a_batch_counts(routing: Routing) -> None:
    message = b'{"type":"track","event":"E","userId":"a","userId":"u","properties":%s}' % _TWICE
    body = b'{"context":{"ip":"first"},"context":{"p":%s},"batch":[],"batch":[%s]}' % (_TWICE, message)
    request = Request(Sender("free", False), "/v1/batch", "application/json", 1_795_515_330_123, "192.0.2.1", "")
    records = accept_batch(body, request, bytes, lambda key, origin: None)
    assert not isinstance(records, Refusal | Accepted)
    (record,) = records
    assert record.value.count(_TWICE) == 2  # hits-raw keeps the client's bytes
    raw = classify_raw(record.value, record.key, record.headers, "hits-raw", 0, 0, 1, routing.plans)
    assert isinstance(raw, RawHit) and raw.hit.identity == "u"
    ((_, value), *_) = routing.values(routing.route(raw, 0))
    json.loads(value, object_pairs_hook=once)
    assert b"first" not in value and value.count(b"last") == 2


def test_the_last_of_repeated_identities_names_and_consents_counts(routing: Routing) -> None:
    body = b'{"hitId":"1","event":{"name":"A","name":"B","user":{"userId":"a"},"user":{"userId":"b"}},%s}'
    raw = read(routing, body.replace(b"%s", b'"integrations":{"All":true,"All":false,"avro":false,"avro":true}'))
    assert (raw.hit.event_name, raw.hit.identity) == ("B", "b")
    chosen = [found.connection for found in routing.route(raw, 0).decisions if found.reason is None]
    assert chosen == ["avro"]


def test_a_repeated_key_is_validated_by_its_last_value(routing: Routing) -> None:
    body = b'{"hitId":"1","event":{"user":{"userId":"u"},"user":null}}'
    assert isinstance(classify_raw(body, None, [("project", b"free")], "hits-raw", 0, 0, 1, routing.plans), Dead)


def spelled(key: str, escape: bool) -> str:
    return '"' + "".join(f"\\u{ord(char):04x}" for char in key) + '"' if escape else json.dumps(key, ensure_ascii=False)


_scalars = st.sampled_from(
    ['"a:b"', '"\\u003a"', '"\\":"', '""', "1e2", "-0", "1.0", "7" * 30, "1e999", "null", "true"]
)
_keys = st.builds(spelled, st.sampled_from(["a", "b", ":", "é", '"', ""]), st.booleans())
_spaces = st.sampled_from(["", " ", "\n\t"])
_texts = st.recursive(
    _scalars,
    lambda inner: (
        st.builds(
            lambda space, members: (
                "{" + ",".join(f"{space}{key}{space}:{value}" for key, value in members) + space + "}"
            ),
            _spaces,
            st.lists(st.tuples(_keys, inner), max_size=4),
        )
        | st.builds(lambda space, items: f"[{space}{f',{space}'.join(items)}]", _spaces, st.lists(inner, max_size=3))
    ),
    max_leaves=12,
)


@given(_texts)
def test_the_result_decodes_to_the_same_value_and_has_no_repeated_key(text: str) -> None:
    """Numbers are compared as text, since their digits must not change."""

    def value(of: str, look: Any = dict) -> Any:
        return json.loads(of, object_pairs_hook=look, parse_int=str, parse_float=str)

    kept = unique_keys(text.encode()).decode()
    assert json.dumps(value(kept, once)) == json.dumps(value(text))  # also in its order
    try:
        value(text, once)
    except AssertionError:
        return
    assert kept == text
