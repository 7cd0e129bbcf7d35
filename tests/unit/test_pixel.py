"""Messages in the URL of a tracking pixel (contract.md, section 1)."""

from __future__ import annotations

import base64
import json
import random
from itertools import islice
from typing import Any
from urllib.parse import quote

import pytest

from pipeline.config import ProjectConfig
from pipeline.intake.answers import INTERNAL_ERROR
from pipeline.stages.accept.pixel import MAX_DOTS
from pipeline.stages.classify import RawHit, classify_raw
from tests.faults.fuzz import SEED, bodies
from tests.unit.intake_line import Line

OPENED = {"writeKey": "page-key", "userId": "u", "event": "Email Opened", "properties": {"subject": "Grüße?>~"}}


def line_of_page() -> Line:
    line = Line()
    line.tokens.replace({"shop": ProjectConfig(public_keys=["page-key"])})
    return line


def get(path: str) -> tuple[bytes, Line]:
    line = line_of_page()
    status = line.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return status, line


def stored(path: str) -> dict[str, Any]:
    status, line = get(path)
    assert status == b"200", line.wire.written
    head, _, body = line.wire.written[-1].partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: image/gif\r\n" in head
    assert b"\r\nCache-Control: no-store\r\n" in head
    assert (body[:6], len(body)) == (b"GIF89a", 43)
    (hit,) = line.store.hits
    assert (hit.project, dict(hit.headers)["endpoint"]) == (
        "shop",
        b"/v1/pixel/" + path.partition("?")[0].encode().split(b"/")[-1],
    )
    found: dict[str, Any] = json.loads(hit.value)
    return found


def encoded(message: object) -> str:
    return base64.b64encode(json.dumps(message, ensure_ascii=False).encode()).decode()


@pytest.mark.parametrize(
    "data",
    [
        quote(encoded(OPENED), safe=""),
        encoded(OPENED),  # a plus that is not percent-encoded
        encoded(OPENED).rstrip("="),
        encoded(OPENED).replace("+", "-").replace("/", "_"),
        quote(json.dumps(OPENED)),
        encoded({name: value for name, value in OPENED.items() if name != "writeKey"}) + "&writeKey=page-key",
    ],
)
def test_segments_data_is_a_message(data: str) -> None:
    found = stored(f"/v1/pixel/track?data={data}")
    assert found["event"]["name"] == "Email Opened"
    assert found["event"]["user"] == {"userId": "u"}
    assert found["event"]["properties"] == {"subject": "Grüße?>~"}
    assert "page-key" not in json.dumps(found)


def test_fields_with_dots_are_members_of_objects() -> None:
    query = "writeKey=page-key&event=Email%20Opened&userId=u&messageId=m&properties.subject=Hi+you&properties.a.b=1&context.page.path=/"
    found = stored(f"/v1/pixel/track?{query}")
    assert found["hitId"] == "m"
    assert found["event"]["properties"] == {"subject": "Hi you", "a": {"b": "1"}}
    assert found["context"] == {"page": {"path": "/"}}
    assert "page-key" not in json.dumps(found)


@pytest.mark.parametrize("kind", ["track", "page", "identify", "group", "screen", "alias"])
@pytest.mark.parametrize("path", ["/v1/pixel/", "/pixel/v1/"])
def test_the_path_names_the_kind(path: str, kind: str) -> None:
    found = stored(f"{path}{kind}?writeKey=page-key&anonymousId=%22a%22&event=E&name=Home&type=other")
    assert found["event"]["type"] == kind
    assert found["event"]["user"] == {"anonymousId": "a"}


def test_consent_is_a_boolean() -> None:
    found = stored(
        "/pixel/v1/track?writeKey=page-key&userId=u&event=E&integrations.All=false&integrations.Webhook=true&context.a=true"
    )
    assert found["integrations"] == {"All": False, "Webhook": True}
    assert found["context"] == {"a": "true"}


def test_the_last_of_contradicting_fields_counts() -> None:
    found = stored("/v1/pixel/track?writeKey=page-key&userId=u&event=A&event=E&properties=x&properties.a=1")
    assert found["event"]["name"] == "E"
    assert found["event"]["properties"] == {"a": "1"}


@pytest.mark.parametrize(
    ("query", "status", "code", "path"),
    [
        ("", 401, "unauthorized", ""),
        ("writeKey=guess&userId=u&event=E", 401, "unauthorized", ""),
        ("data=" + encoded({"userId": "u", "event": "E"}), 401, "unauthorized", ""),
        ("writeKey=guess&data=" + encoded(OPENED), 401, "unauthorized", ""),
        ("data=" + encoded(OPENED | {"writeKey": "guess"}), 401, "unauthorized", ""),
        ("writeKey=page-key&data=***", 400, "invalid_json", "data"),
        ("data=%C3%A9", 400, "invalid_json", "data"),
        ("data=", 400, "invalid_json", ""),
        ("data=" + encoded([1]), 400, "invalid_json", ""),
        ("writeKey=page-key&userId=u", 400, "invalid_hit", "event"),
        ("writeKey=page-key&event=E", 400, "invalid_hit", "event.user"),
        ("writeKey=page-key&userId=u&event=E&integrations.All=yes", 400, "invalid_hit", "integrations.All"),
        ("writeKey=page-key&" + "&".join(["a=1"] * 1001), 400, "invalid_hit", ""),
    ],
)
def test_an_invalid_message_is_refused(query: str, status: int, code: str, path: str) -> None:
    found, line = get(f"/v1/pixel/track?{query}")
    error = json.loads(line.wire.written[-1].partition(b"\r\n\r\n")[2])["error"]
    assert (int(found), error["code"], error["path"]) == (status, code, path)
    assert line.store.hits == []


def test_a_name_with_a_thousand_dots_is_not_a_thousand_levels_deep() -> None:
    found = stored("/v1/pixel/track?writeKey=page-key&userId=u&event=E&" + "a." * 1000 + "b=1")
    depth, inner = 0, found["event"]
    while isinstance(inner, dict):
        depth, inner = depth + 1, inner.get("a", next((inner[name] for name in inner if name.startswith("a.")), None))
    assert depth == MAX_DOTS + 1


def test_a_pixel_is_requested_by_get() -> None:
    assert Line().ask(b"POST /v1/pixel/track HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n") == b"405"


def test_any_query_is_answered() -> None:
    line = line_of_page()
    draw = random.Random(SEED)
    statuses = set()
    for body in islice(bodies(SEED), 500):
        plain = f"writeKey=page-key&userId=u&event=E&{draw.choice(('properties', 'context', 'integrations', 'a.b'))}.x="
        data = draw.choice((base64.b64encode(body).decode(), quote(body)))
        for query in (f"writeKey=page-key&data={data}", plain + quote(body).replace("%22", "&")):
            if not line.wire.closed:
                statuses.add(line.ask(f"GET /pixel/v1/track?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
                assert INTERNAL_ERROR.message.encode() not in line.wire.written[-1], query
            else:
                line = line_of_page()
    for record in line.store.hits:
        assert isinstance(classify_raw(record.value, record.key, record.headers, "hits-raw", 0, 0, 1, {"shop"}), RawHit)
    assert statuses == {b"200", b"400"}
