"""With `anonymize` no dialect stores a client's full address, and no other byte of a hit changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec.context_ip import replace_context_ip
from pipeline.codec.hit import decode_hit
from pipeline.config import ProjectConfig
from pipeline.config.models import EnrichConfig, IpConfig
from pipeline.enrichments.ip import anonymous_ip
from pipeline.intake.anonymizer import Anonymizer
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.refused import RefusedRequests
from pipeline.intake.server_state import ServerState
from pipeline.intake.tokens import Tokens
from pipeline.stages.enrich import Enricher, RequestFacts
from tests.unit.intake_line import Kept, Line, request

EVENT = '"event":{"name":"A","user":{"userId":"u"},"ip":"192.0.2.1","context":{"ip":"192.0.2.1"}}'


def stored(body: str) -> str:
    return replace_context_ip(body.encode(), anonymous_ip).decode()


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('"198.51.100.77"', '"198.51.100.0"'),
        ('"2001:db8:1:2:3:4:5:6"', '"2001:db8:1::"'),
        ('"::ffff:198.51.100.77"', '"198.51.100.0"'),
        ('"2002:c633:644d:1::1"', '"2002:c633:6400::"'),
        (r'"198\u002e51.100.77"', '"198.51.100.0"'),
        ('"198.51.100.0"', '"198.51.100.0"'),
        ('"198.51.100.77:4711"', '"?"'),
        ('"198.51.100.77, 10.0.0.1"', '"?"'),
        ('"[2001:db8::77]"', '"?"'),
        ('"unknown"', '"?"'),
        ("3325256781", '"?"'),
        ("-3325256781.5e1", '"?"'),
        ("true", '"?"'),
        ('["198.51.100.77"]', '"?"'),
        ('{"v4": "198.51.100.77", "ip": [{}]}', '"?"'),
        (r'"\ud800"', '"?"'),
        ("null", "null"),
        ('""', '""'),
        ("{}", "{}"),
        ("5", "5"),
    ],
)
@pytest.mark.parametrize(
    "around",
    [
        '{{"context":{{"ip":{0}}},{1}}}',
        '{{{1},"context":{{"ip":{0}}}}}',
        '{{ "context" :\n{{ "a" : {{"ip":"192.0.2.1"}} , "ip" :\t{0} , "b":["ip",{{"ip":"192.0.2.1"}}] }}\n, {1} }}',
        '{{"context":{{"ip":{0},"ip":{0}}},{1},"context":{{"ip":{0}}}}}',
        '{{"context":{{"ip":{0}}},{1},"context":{{}}}}',
        '{{"context":{{"ip":{0}}},"context":null,"a":"ip"}}',
        r'{{"context":{{"ip":{0}}},"a":"say \"ip\": \"192.0.2.1\""}}',
        r'{{"context":{{"ip":{0},"caf\u00e9":"\u00e9"}},"ip\\":"192.0.2.1"}}',
        r'{{"c\u006fntext":{{"\u0069p":{0}}},{1}}}',
        r'{{"a":"\\\"ip\":\"192.0.2.1\"}}","ip":"192.0.2.1","context":{{"x":"\"}}","ip":{0}}},{1}}}',
    ],
)
def test_only_the_address_changes(around: str, sent: str, kept: str) -> None:
    body = around.format(sent, EVENT)
    assert stored(body) == around.format(kept, EVENT)
    assert len(stored(body)) <= len(body), "a hit of the largest size stays one"


@pytest.mark.parametrize(
    "body",
    [
        '{"context":["ip","192.0.2.1"]}',
        '{"context":[{"ip":"192.0.2.1"}]}',
        '[{"context":{"ip":"192.0.2.1"}}]',
        '[["context",{"ip":"192.0.2.1"}]]',
        '{"context":"ip","a":{"ip":"192.0.2.1"}}',
        '{"context":{},"a":{"ip":"192.0.2.1"}}',
        '"ip"',
        "{}",
    ],
)
def test_other_values_than_the_clients_address_stay(body: str) -> None:
    assert stored(body) == body


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["ip", "context", "192.0.2.1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["ip", "context", "a", '"', "\\"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["ip", "context", "a", "é"]), VALUES, max_size=4), st.booleans(), st.booleans())
def test_any_hit_is_the_same_hit_with_another_address(hit: dict[str, Any], ascii: bool, dense: bool) -> None:
    text = json.dumps(hit, ensure_ascii=ascii, separators=(",", ":") if dense else None)
    expected = json.loads(text)
    context = expected.get("context")
    if isinstance(context, dict) and context.get("ip") is not None:
        sent = context["ip"]
        if len(json.dumps(sent, ensure_ascii=ascii)) >= 3:
            context["ip"] = anonymous_ip(sent) if isinstance(sent, str) else "?"
    assert json.loads(stored(text)) == expected


def asked(*bodies: tuple[str, str], is_on: bool = True) -> Kept:
    store = Kept()
    anonymizer = Anonymizer(store, is_on)
    tokens = Tokens({"shop": ProjectConfig(tokens=["old"])})
    state = ServerState(Endpoints(tokens), anonymizer, b"{}", ClientAddress([]), anonymizer.address)
    line = Line(state)
    line.store = store
    for path, body in bodies:
        line.ask(request(body.encode(), path=path))
    return store


HIT = f'{{"hitId":"1","context":{{"ip":"198.51.100.77"}},"projectId":"shop",{EVENT}}}'
MESSAGE = '{"type":"track","event":"A","userId":"u","messageId":"1","context":{"ip":"198.51.100.77"}}'
EVERY_DIALECT = [
    ("/track", HIT),
    ("/collect", HIT),
    ("/v1/track", MESSAGE),
    ("/v1/batch", f'{{"batch":[{MESSAGE},{MESSAGE.replace("track", "unknown")}]}}'),
    ("/v1/batch", '{"batch":[{"type":"track","event":"A","userId":"u"}],"context":{"ip":"198.51.100.77"}}'),
]


def test_no_dialect_and_no_dead_letter_keeps_the_address() -> None:
    found = asked(*EVERY_DIALECT)
    assert len(found.hits) == 6 and any("refused" in dict(hit.headers) for hit in found.hits)
    for hit in found.hits:
        assert b"198.51.100.77" not in hit.value and b'"198.51.100.0"' in hit.value
        assert dict(hit.headers)["request-ip"] == b"203.0.113.0"


def test_without_anonymize_the_clients_bytes_stay() -> None:
    (hit,) = asked(("/track", HIT), is_on=False).hits
    assert hit.value == HIT.encode() and dict(hit.headers)["request-ip"] == b"203.0.113.9"


@pytest.mark.parametrize("sent", ['"198.51.100.77:4711"', '["198.51.100.77"]', "3325256781"])
def test_the_router_anonymises_addresses_of_other_writers(sent: str) -> None:
    enrich = Enricher(EnrichConfig(ip=IpConfig(anonymize=True), user_agent=False, campaign=False), [])
    result = enrich(f'{{"ip":{sent}}}'.encode(), RequestFacts("192.0.2.77"))
    assert json.loads(result.context) == {"ip": "?", "flags": ["ip_invalid"]}


def test_the_largest_hit_stays_within_the_limit() -> None:
    filler = "x" * (65_536 - len(HIT) - 9)
    hit = HIT[:-1].replace('"198.51.100.77"', "123") + f',"a":"{filler}"}}'
    decode_hit(stored(hit).encode())


@pytest.mark.parametrize(("hides", "shown"), [(lambda: True, "***"), (lambda: False, "198.51.100.77")])
def test_bodies_of_refused_requests_are_shown_without_addresses(hides: Callable[[], bool], shown: str) -> None:
    line = Line()
    line.state.refused = RefusedRequests(hides_addresses=hides)
    line.state.refused.lines(bodies=True)
    line.ask(request(b'{"context": {"ip" : "198.51.100.77"}}'))
    (entry,) = line.state.refused.lines(bodies=True).splitlines()
    assert json.loads(json.loads(entry)["body"])["context"]["ip"] == shown
