"""What a sender may write, and the router must outlive: contract.md, section 1, takes all of these hits."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.hit import check_hit
from pipeline.config import Config
from pipeline.errors import InvalidHit
from pipeline.router.routing import Routing
from pipeline.stages.classify import RawHit, Rekey, classify_raw

_CONNECTIONS: dict[str, Any] = {
    "when": {"destination": "Kafka", "when": "event.value > 0 || context.bot"},
    "events": {"destination": "Kafka", "events": ["*a*", "!*b"]},
    "sample": {"destination": "Kafka", "sample": 0.5},
    "fewer": {"destination": "Kafka", "drop_fields": ["event.user.x", "event.value.x", "context.ip", "x"]},
    "avro": {"destination": "Kafka", "format": "avro"},
    "analytics": {"destination": "Google Analytics", "settings": {"measurement_id": "G-1", "api_secret": "s"}},
}


@pytest.fixture(scope="module")
def routing(tmp_path_factory: pytest.TempPathFactory) -> Routing:
    plan = tmp_path_factory.mktemp("plans") / "plan.json"
    value = {"type": ["number", "array"], "minimum": 0, "items": {"minimum": 5, "multipleOf": 2}}
    plan.write_text(json.dumps({"properties": {"name": {"type": "string"}, "value": value}}))
    projects = {
        kind: {"tracking_plan": {"schema": str(plan), "on_violation": kind}} for kind in ("warn", "strip", "quarantine")
    }
    return Routing(Config.model_validate({"projects": {**projects, "free": {}}, "connections": _CONNECTIONS}))


def routed(routing: Routing, project: str, body: bytes) -> None:
    headers = [("project", project.encode()), ("request-ip", b"192.0.2.1")]
    raw = classify_raw(body, None, headers, "hits-raw", 0, 0, 1, routing.plans)
    if isinstance(raw, Rekey):
        raw = classify_raw(body, raw.key, raw.headers, "hits-raw", 0, 0, 1, routing.plans)
    assert isinstance(raw, RawHit), raw
    if routing.quarantined(raw) is None:
        for connections, value in routing.values(routing.route(raw, 1_795_515_330_123)):
            assert "avro" in connections or json.loads(value, parse_int=float)


_scalars = st.sampled_from(
    [
        *(
            "1e999",
            "-1e999",
            "7" * 400,
            "-" + "7" * 5_000,
            "-0",
            "1.0",
            "123456789012345678901234567890",
            "18446744073709551615",
            "7",
            "null",
            "true",
        ),
        *('""', '" "', '"a"', '"\\u0000"', '"::1"', '"fe80::1%eth0"', '"1.2.3.4/8"', '"http://[::1?utm_source=%zz"'),
        *('"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59.9999999Z"', '"curl/8"', '"a*b"'),
    ]
)
_keys = st.sampled_from(
    [
        *("name", "value", "ip", "userAgent", "page", "url", "referrer", "location", "browser", "bot", "campaign"),
        *("flags", "x", "", "All", "analytics", "Google Analytics", "clientId", "options", "projectId"),
    ]
)


def _object(members: dict[str, str]) -> str:
    return "{\n" + ",".join(f"{json.dumps(key)}: {value}" for key, value in members.items()) + "}"


_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.dictionaries(_keys, inner, max_size=3).map(_object)
    ),
    max_leaves=5,
)
_objects = st.dictionaries(_keys, _values, max_size=3)


@given(
    _objects,
    st.fixed_dictionaries(
        {},
        optional={"hitId": _scalars, "sentAt": _scalars, "context": _objects.map(_object), "x": _values}
        | {"integrations": _objects.map(_object)},
    ),
    st.sampled_from(["warn", "strip", "quarantine", "free"]),
    st.sampled_from(["", "\n "]),
)
def test_no_hit_that_the_intake_takes_ends_the_router(
    routing: Routing, event: dict[str, str], others: dict[str, str], project: str, space: str
) -> None:
    user = _object({"userId": '"u"'})
    body = (space + _object({"event": _object({**event, "user": user}), **others})).encode()
    try:
        check_hit(body)
    except InvalidHit:
        return
    routed(routing, project, body)


def test_long_values_of_senders_are_not_cached(routing: Routing) -> None:
    def long(number: int, member: str) -> bytes:
        text = f"{number}{'x' * 50_000}"
        event: dict[str, Any] = {"user": {"userId": "u"}, "name": text if member == "name" else "a"}
        hit = {
            "ip": {"context": {"ip": text}},
            "agent": {"context": {"userAgent": text}},
            "page": {"context": {"page": {"url": f"https://{text}/?utm_source=x"}}},
            "referrer": {"context": {"page": {"url": "https://a.example/", "referrer": f"https://b.example/{text}"}}},
            "integrations": {"integrations": {text: True}},
            "options": {"integrations": {"when": {"x": text}}},
            "member": {text: 1},
        }.get(member, {})
        return json.dumps({"event": event, **hit}).encode()

    members = ["name", "ip", "agent", "page", "referrer", "integrations", "options", "member"]
    for member in members:
        routed(routing, "free", long(0, member))
    tracemalloc.start()
    try:
        grown = {}
        for member in members:
            before = tracemalloc.get_traced_memory()[0]
            for number in range(1, 41):
                routed(routing, "free", long(number, member))
            grown[member] = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert max(grown.values()) < 500_000, grown  # remembered, they would be two million each
