"""Public keys, allowed origins, and the header `door` of records of hits-raw (contract.md, section 1)."""

from __future__ import annotations

import gzip
import json
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client import REGISTRY

from pipeline.config import Config, ProjectConfig
from pipeline.config.checked import problems_of
from pipeline.config.models import CollectConfig
from pipeline.intake.tokens import Tokens
from pipeline.stages.accept import Origins, Sender
from tests.roles import hit
from tests.unit.intake_line import Line, request

PAGE = "https://shop.example"
SHOP = {"tokens": ["old"], "public_keys": ["page-key"], "data_streams": ["stream"]}


def line_of(**shop: Any) -> Line:
    """A connection to a server with the project `shop`."""
    line = Line()
    line.tokens.replace({"shop": ProjectConfig.model_validate({**SHOP, **shop})})
    return line


def doors(line: Line) -> list[str]:
    return [dict(kept.headers).get("door", b"secret").decode() for kept in line.store.hits]  # type: ignore[union-attr]


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, *headers]).encode() + b"\r\n\r\n" + body


def collect(project: str = "shop", *headers: str) -> bytes:
    return post("/collect", hit("1", projectId=project), *headers)


def message(write_key: str | None) -> bytes:
    return json.dumps({"userId": "u", "event": "E", **({"writeKey": write_key} if write_key else {})}).encode()


def picture(query: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET /v1/pixel/track?{query} HTTP/1.1", "Host: x", *headers]).encode() + b"\r\n\r\n"


def batch(write_key: str | None) -> bytes:
    one = {"type": "track", "userId": "u", "event": "E"}
    wrong = {"type": "none", "userId": "u"}
    return json.dumps({"batch": [one, wrong], **({"writeKey": write_key} if write_key else {})}).encode()


@pytest.mark.parametrize(
    ("data", "answer", "door"),
    [
        (request(hit("1")), b"204", ["secret"]),
        (request(hit("1"), token="page-key"), b"204", ["public"]),
        (collect(), b"204", ["public"]),
        (post("/ds/stream", b"a=1"), b"204", ["public"]),
        (request(message(None), path="/v1/track"), b"200", ["secret"]),
        (request(message("page-key"), path="/v1/track"), b"200", ["secret"]),
        (request(message(None), path="/v1/track", token="page-key"), b"200", ["public"]),
        (post("/v1/track", message("page-key")), b"200", ["public"]),
        (post("/v1/track", message("old")), b"200", ["secret"]),
        (post("/v1/batch", batch("page-key")), b"200", ["public", "public"]),
        (post("/v1/batch", gzip.compress(batch("old")), "Content-Encoding: gzip"), b"200", ["secret", "secret"]),
        (request(batch(None), path="/v1/batch", token="page-key"), b"200", ["public", "public"]),
        (picture("userId=u&event=E&writeKey=page-key"), b"200", ["public"]),
        (picture("data=" + quote(message("page-key"))), b"200", ["public"]),
        (post("/beacon/v1/batch?writeKey=page-key", batch("old")), b"200", ["public", "public"]),
        (post("/beacon/v1/batch", batch("page-key")), b"200", ["public", "public"]),
        # A token in an address, which proxies keep, is no secret.
        (picture("userId=u&event=E&writeKey=old"), b"200", ["public"]),
        (picture("data=" + quote(message("old"))), b"200", ["public"]),
        (post("/beacon/v1/batch?writeKey=old", batch("page-key")), b"200", ["public", "public"]),
        (post("/v1/track", message("other")), b"401", []),
        (request(hit("1"), token="other"), b"401", []),
    ],
)
def test_the_key_determines_the_door(data: bytes, answer: bytes, door: list[str]) -> None:
    line = line_of()
    assert (line.ask(data), doors(line)) == (answer, door)
    assert (line.ask(data), doors(line)) == (answer, 2 * door), "the same where the head is known"


def test_a_key_moved_to_the_other_list_changes_its_door() -> None:
    line = line_of(tokens=["old", "key"], public_keys=[])
    assert [line.ask(request(hit("1"), token="key")) for _ in range(2)] == [b"204"] * 2
    line.tokens.replace({"shop": ProjectConfig(tokens=["old"], public_keys=["key", "new"])})
    line.state.version += 1
    assert [line.ask(request(hit("1"), token=token)) for token in ("key", "new")] == [b"204"] * 2
    assert doors(line) == ["secret", "secret", "public", "public"]


def test_a_public_key_is_no_secret() -> None:
    tokens = Tokens({"shop": ProjectConfig.model_validate(SHOP)})
    assert [tokens.is_secret(text) for text in ("old", "stream", "page-key")] == [True, True, False]
    assert tokens.sender_of("page-key") == Sender("shop", True)


class TestOrigins:
    @pytest.mark.parametrize(
        ("listed", "origin", "allowed"),
        [
            ("*", "https://any.example", True),
            ("*", "null", True),
            ("*", "", True),
            ("https://shop.example", "https://shop.example", True),
            ("https://Shop.example", "https://shop.EXAMPLE", True),
            ("https://shop.example", "http://shop.example", False),
            ("https://shop.example", "https://shop.example:8443", False),
            ("https://shop.example", "https://shop.example.evil.example", False),
            ("https://shop.example", "https://evil-shop.example", False),
            ("https://shop.example", "null", False),
            ("https://shop.example", "", False),
            ("https://*.shop.example", "https://www.shop.example", True),
            ("https://*.shop.example", "https://a.b.shop.example", True),
            ("https://*.shop.example", "https://shop.example", False),
            ("https://*.shop.example", "https://evilshop.example", False),
            ("https://*.shop.example", "https://.shop.example", False),
            ("https://*.shop.example:8443", "https://www.shop.example:8443", True),
            ("https://*.shop.example:8443", "https://www.shop.example", False),
            ("http://localhost:3000", "http://localhost:3000", True),
            ("http://[::1]:3000", "http://[::1]:3000", True),
            ("capacitor://localhost", "capacitor://localhost", True),
        ],
    )
    def test_only_listed_pages_are_allowed(self, listed: str, origin: str, allowed: bool) -> None:
        assert Origins(CollectConfig(origins=[listed]).origins).allow(origin) is allowed

    @pytest.mark.parametrize(
        "wrong",
        [
            *(
                "shop.example",
                "https://shop.example/",
                "https://shop.example/path",
                "https://",
                "",
                "null",
                "https://*",
            ),
            *("https://shop.example:443", "http://shop.example:80", "https://*shop.example", "https://a.*.example"),
            *("https://shop.example\n", " https://shop.example", "https://user@shop.example", "https://bücher.example"),
        ],
    )
    def test_an_origin_that_no_browser_sends_is_refused(self, wrong: str) -> None:
        with pytest.raises(ValueError, match=r"origin|port"):
            CollectConfig(origins=[wrong])

    def test_an_empty_list_is_refused_because_it_may_mean_every_page_or_none(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            CollectConfig(origins=[])


def preflight(path: str, origin: str = PAGE) -> bytes:
    head = [f"OPTIONS {path} HTTP/1.1", "Host: x", "Access-Control-Request-Method: POST", f"Origin: {origin}"]
    return "\r\n".join(head).encode() + b"\r\n\r\n"


LISTED = {"collect": {"origins": [PAGE, "https://*.shop.example"]}}
EVIL = "Origin: https://evil.example"


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (collect("shop", f"Origin: {PAGE}"), b"204"),
        (collect("shop", "Origin: https://www.shop.example"), b"204"),
        (collect("shop", EVIL), b"403"),
        (collect("shop", "Origin: null"), b"403"),
        (collect("shop"), b"403"),
        (preflight("/collect"), b"204"),
        (preflight("/collect", "https://evil.example"), b"403"),
        (post("/v1/track", message("page-key"), f"Origin: {PAGE}"), b"200"),
        (post("/v1/track", message("page-key"), EVIL), b"403"),
        (post("/v1/batch", batch("page-key"), EVIL), b"403"),
        (request(message(None), EVIL, path="/v1/track", token="page-key"), b"403"),
        (post("/beacon/v1/batch?writeKey=page-key", batch(None), f"Origin: {PAGE}"), b"200"),
        (post("/beacon/v1/batch?writeKey=page-key", batch(None), EVIL), b"403"),
        (picture("userId=u&event=E&writeKey=page-key", EVIL), b"403"),
        (picture("data=" + quote(message("page-key")), EVIL), b"403"),
        (picture("userId=u&event=E&writeKey=page-key"), b"200"),  # of an <img>, which names no origin
        (post("/v1/track", message("page-key")), b"200"),  # an app names no origin
        (post("/v1/track", message("old"), EVIL), b"200"),  # a token is secret: whoever has it may send
        (request(message(None), EVIL, path="/v1/track"), b"200"),
        (request(hit("1"), EVIL), b"204"),
        (post("/ds/stream", b"a=1", EVIL), b"204"),
        (preflight("/v1/track", "https://evil.example"), b"204"),  # it names no key yet
    ],
)
def test_pages_that_are_not_listed_are_refused(data: bytes, answer: bytes) -> None:
    line = line_of(**LISTED)
    assert [line.ask(data), line.ask(data)] == [answer] * 2
    written = line.wire.written[-1]
    if answer == b"403":
        assert b'"code": "origin_not_allowed"' in written and b"Access-Control-" not in written
        assert not line.store.hits
    elif b"Origin: " in data and b"/track HTTP" not in data.replace(b"/v1/track", b"") and b"/ds" not in data:
        assert b"Access-Control-Allow-Origin: " in written


def refusals(code: str) -> float:
    """Return the number of refused requests with and without a project."""
    counted = [
        REGISTRY.get_sample_value("hitrouter_intake_refused_total", {"project": project, "code": code})
        for project in ("", "shop")
    ]
    return sum(count or 0.0 for count in counted)


def test_what_is_refused_is_counted_and_shown_with_its_page() -> None:
    line = line_of(**LISTED)
    before = refusals("origin_not_allowed")
    assert line.ask(collect("shop", EVIL)) == b"403"
    assert line.ask(preflight("/collect", "https://evil.example/" + "x" * 500)) == b"403"
    assert line.ask(collect("shop")) == b"403"
    assert refusals("origin_not_allowed") == before + 3
    first, second, third = map(json.loads, line.state.refused.lines().splitlines())
    assert (first["code"], first["project"], first["status"]) == ("origin_not_allowed", "shop", 403)
    assert "pages of https://evil.example may not send" in first["message"]
    assert (second["method"], len(second["message"]) < 300) == ("OPTIONS", True)
    assert "sends to /track with a token" in third["message"]


def test_collect_can_be_switched_off_for_one_project() -> None:
    line = line_of(collect={"enabled": False})
    assert line.ask(collect("shop", f"Origin: {PAGE}")) == b"403"
    assert b'"code": "collect_disabled"' in line.wire.written[-1]
    assert line.ask(preflight("/collect")) == b"403"
    assert line.ask(post("/v1/track", message("page-key"), f"Origin: {PAGE}")) == b"200"
    line.tokens.replace({"shop": ProjectConfig(collect=CollectConfig(enabled=False)), "blog": ProjectConfig()})
    line.state.version += 1
    assert line.ask(preflight("/collect")) == b"204"
    assert line.ask(collect("blog", f"Origin: {PAGE}")) == b"204"


def test_a_changed_list_applies_to_open_connections() -> None:
    line = line_of()
    data = collect("shop", EVIL)
    assert [line.ask(data), line.ask(data)] == [b"204"] * 2
    line.tokens.replace({"shop": ProjectConfig.model_validate({**SHOP, **LISTED})})
    line.state.version += 1
    assert [line.ask(data), line.ask(data)] == [b"403"] * 2


def test_a_key_is_secret_or_public_and_belongs_to_one_project() -> None:
    config = Config.model_validate(
        {
            "projects": {
                "shop": {"tokens": ["a", "a", "b"], "public_keys": ["b", "c", "c"]},
                "blog": {"tokens": ["c"], "public_keys": ["a", "d"], "data_streams": ["d"]},
            }
        }
    )
    found = {".".join(map(str, path)): message for path, message in problems_of(config)}
    assert found == {
        "projects.shop.public_keys.0": "is also in `tokens`; a key is either secret or public, "
        "so create another one for browsers",
        "projects.blog.tokens.0": "shop has the same key; each project needs its own",
        "projects.blog.public_keys.0": "shop has the same key; each project needs its own",
    }


@pytest.mark.parametrize("wrong", ["a:b", "", " a", "a\n", "sha256:short"])
def test_public_keys_have_the_form_of_tokens(wrong: str) -> None:
    with pytest.raises(ValueError):
        ProjectConfig(public_keys=[wrong])


NOBODY = "Authorization: Basic bm9ib2R5Og=="


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (post("/track", hit("1")), b"send a token of the project, or one of its public_keys, as the user name"),
        (post("/track", hit("1"), NOBODY), b"no project has this token or public key"),
        (post("/v1/track", message(None), NOBODY), b"no project has this token or public key"),
        (post("/v1/track", message(None)), b"give the write key as the user name"),
        (post("/v1/track", message("nobody")), b"no project has this write key"),
        (post("/v1/batch", json.dumps({"writeKey": "nobody", "batch": []}).encode()), b"no project has this write key"),
        (post("/beacon/v1/batch?writeKey=nobody", b'{"batch":[]}'), b"no project has the key in this address"),
        (b"GET /sourceConfig HTTP/1.1\r\nHost: x\r\n\r\n", b"or one of its public_keys, as the user name"),
    ],
)
def test_an_unknown_key_and_a_missing_key_have_different_answers(data: bytes, said: bytes) -> None:
    line = line_of()
    assert line.ask(data) == b"401"
    assert said in line.wire.written[-1] and not line.store.hits
