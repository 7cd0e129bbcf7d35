"""Documents that browser clients fetch before they send, and allowed headers of pages (contract.md, section 1)."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from prometheus_client import REGISTRY

from pipeline.config import ProjectConfig
from pipeline.config.models import IntakeConfig
from tests.unit.intake_line import Line

PAGE = "Origin: https://shop.example"
SETTINGS = "/v1/projects/page-key/settings"
BASIC = "Authorization: Basic " + base64.b64encode(b"page-key:").decode()
OF_A_TOKEN = "Authorization: Basic " + base64.b64encode(b"old:").decode()


def line_of_shop(**shop: Any) -> Line:
    line = Line()
    keys = {"tokens": ["old"], "public_keys": ["page-key"]}
    line.tokens.replace({"shop": ProjectConfig.model_validate({**keys, **shop})})
    return line


def asked(path: str, *headers: str, method: str = "GET", host: str = "hits.example", line: Line | None = None) -> str:
    line = line or line_of_shop()
    line.ask("\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode())
    return line.wire.written[-1].decode()


def json_of(answer: str) -> Any:
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200"), answer
    return json.loads(body)


def segment(answer: str) -> tuple[str, str, str]:
    found = json_of(answer)["integrations"]
    assert list(found) == ["Segment.io"]
    settings = found["Segment.io"]
    return settings["apiKey"], settings["protocol"], settings["apiHost"]


class TestSegment:
    def test_the_settings_name_the_requested_host(self) -> None:
        assert segment(asked(SETTINGS, PAGE)) == ("page-key", "https", "hits.example/v1")

    @pytest.mark.parametrize(
        ("host", "origin", "protocol"),
        [
            ("hits.example:8443", "https://shop.example", "https"),
            ("hits.example", "http://shop.example", "http"),
            ("hits.example", "", "http"),
            # A page from anywhere may ask its own machine in plain text.
            ("localhost:8080", "https://shop.example", "http"),
            ("127.0.0.1:8080", "https://shop.example", "http"),
            ("[::1]:8080", "https://shop.example", "http"),
            ("127.0.0.1.example", "https://shop.example", "https"),
            ("localhost.example", "https://shop.example", "https"),
        ],
    )
    def test_a_page_by_https_sends_by_https(self, host: str, origin: str, protocol: str) -> None:
        headers = [f"Origin: {origin}"] if origin else []
        assert segment(asked(SETTINGS, *headers, host=host)) == ("page-key", protocol, f"{host}/v1")

    def test_the_public_url_counts_before_the_host(self) -> None:
        line = line_of_shop()
        line.state.public_url = "https://shop.example/hits"
        assert segment(asked(SETTINGS, host="10.0.0.7:8080", line=line)) == (
            "page-key",
            "https",
            "shop.example/hits/v1",
        )

    @pytest.mark.parametrize("host", ["evil.example/path", "a b", "user@evil.example", '"', ""])
    def test_an_invalid_host_is_refused(self, host: str) -> None:
        answer = asked(SETTINGS, host=host)
        assert answer.startswith("HTTP/1.1 400")
        assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["message"].startswith(
            "the Host header is not a valid host"
        )

    def test_an_unknown_key_is_404_and_readable_by_the_page(self) -> None:
        answer = asked("/v1/projects/guess/settings", PAGE)
        assert answer.startswith("HTTP/1.1 404")
        assert "\r\nAccess-Control-Allow-Origin: https://shop.example\r\n" in answer
        assert "no project has this write key" in answer

    def test_a_key_in_percent_encoding_is_the_same(self) -> None:
        line = line_of_shop(public_keys=["a key"])
        assert segment(asked("/v1/projects/a%20key/settings", line=line))[0] == "a key"

    @pytest.mark.parametrize(
        "path", ["/v1/projects", "/v1/projects/page-key", "/v1/projects/page-key/other", "/v1/projects/a/b/settings"]
    )
    def test_other_paths_are_404(self, path: str) -> None:
        assert asked(path).startswith("HTTP/1.1 404")

    def test_client_metrics_are_accepted_and_discarded(self) -> None:
        line = Line()
        line.ask(f'POST /v1/m HTTP/1.1\r\nHost: x\r\n{PAGE}\r\nContent-Length: 13\r\n\r\n{{"series":[]}}'.encode())
        answer = line.wire.written[-1].decode()
        assert json_of(answer) == {"success": True}
        assert "\r\nAccess-Control-Allow-Origin: https://shop.example\r\n" in answer
        assert line.store.hits == []


class TestRudderStack:
    @pytest.mark.parametrize(
        "key",
        [(BASIC, ""), (OF_A_TOKEN, ""), ("X: y", "&writeKey=page-key"), ("X: y", "&writeKey=a&writeKey=page-ke%79")],
    )
    def test_the_source_has_no_destinations(self, key: tuple[str, str]) -> None:
        header, field = key
        source = json_of(asked(f"/sourceConfig/?p=npm&v=3.34.1{field}", header, PAGE))["source"]
        assert (source["enabled"], source["destinations"], source["id"]) == (True, [], "hitrouter")
        assert source["config"]["statsCollection"] == {"errors": {"enabled": False}, "metrics": {"enabled": False}}

    def test_the_ad_blocker_check_of_the_client_succeeds(self) -> None:
        answer = asked("/sourceConfig/?view=ad", BASIC, PAGE, method="HEAD")
        assert answer.startswith("HTTP/1.1 200")
        assert answer.endswith("\r\n\r\n")

    @pytest.mark.parametrize("path", ["/sourceConfig", "/sourceConfig?writeKey=", "/sourceConfig?writeKey=guess"])
    def test_without_a_known_key_it_is_401(self, path: str) -> None:
        answer = asked(path, PAGE)
        assert answer.startswith("HTTP/1.1 401")
        assert "\r\nAccess-Control-Allow-Origin: https://shop.example\r\n" in answer


@pytest.mark.parametrize("path", [SETTINGS, "/sourceConfig?writeKey=page-key"])
def test_the_answer_is_cacheable_only_privately_and_briefly(path: str) -> None:
    answer = asked(path, PAGE)
    assert "\r\nCache-Control: private, max-age=300\r\n" in answer
    assert "\r\nAccess-Control-Allow-Origin: https://shop.example\r\n" in answer
    assert "\r\nVary: Origin\r\n" in answer
    assert "shop" not in answer.replace("shop.example", "")  # the project's name is nobody's business
    assert asked(path, method="POST").startswith("HTTP/1.1 405")


def test_the_whole_answer_holds_nothing_of_the_project_but_the_key_that_was_sent() -> None:
    line = line_of_shop(data_streams=["stream"], collect={"origins": ["https://shop.example"]})
    settings = {"apiKey": "page-key", "apiHost": "hits.example/v1", "protocol": "https", "addBundledMetadata": False}
    assert json_of(asked(SETTINGS, PAGE, line=line)) == {
        "integrations": {"Segment.io": settings},
        "metrics": {"sampleRate": 0},
    }
    source = json_of(asked("/sourceConfig", BASIC, PAGE, line=line))
    nothing = json_of(asked("/sourceConfig", BASIC, PAGE, line=line_of_shop()))
    assert source == nothing, "it is the same for each project"
    assert set(source) == {"isHosted", "source"}
    assert set(source["source"]) == {
        *("id", "name", "workspaceId", "enabled", "updatedAt", "config", "destinations"),
    }


@pytest.mark.parametrize("path", ["/v1/projects/old/settings", "/sourceConfig?writeKey=old"])
def test_a_token_in_the_address_is_a_write_key_like_others(path: str) -> None:
    assert asked(path, PAGE).startswith("HTTP/1.1 200")


def test_invented_keys_add_no_entry() -> None:
    line = line_of_shop()

    def ask_all(number: int) -> None:
        page = f"Origin: https://made-up-{number}.example"
        for path in (
            f"/v1/projects/made-up-{number}/settings",
            f"/v1/projects/made-up-{number}",
            f"/sourceConfig?writeKey=made-up-{number}",
            f"/v1/m/made-up-{number}",
            SETTINGS,
        ):
            asked(path, page, host=f"made-up-{number}.example", line=line)
        line.ask(f"POST /v1/m HTTP/1.1\r\nHost: x\r\n{page}\r\nContent-Length: 2\r\n\r\n{{}}".encode())

    def kept() -> int:
        return sum(1 for metric in REGISTRY.collect() for _ in metric.samples)

    ask_all(0)
    before = kept()
    for number in range(1, 100):
        ask_all(number)
    assert kept() == before
    assert not line.state.admission._traffic and not line.state.admission._shares
    assert len(line.state._dated) <= 100
    assert line.store.hits == []


@pytest.mark.parametrize(
    "name",
    # Of retries: a browser does not send what no preflight allows, so hits of an outage would never arrive.
    [
        *("X-Retry-Count", "Authorization", "Content-Type", "SentAt", "AnonymousId", "Rsa-Recovered"),
        *("Rsa-Retry-Attempt", "Rsa-Retry-Reason", "Rsa-Since-Last-Attempt", "Rsa-Since-First-Attempt"),
    ],
)
def test_a_page_may_send_the_headers_of_both_clients(name: str) -> None:
    answer = asked("/v1/t", PAGE, method="OPTIONS")
    (allowed,) = [line for line in answer.split("\r\n") if line.startswith("Access-Control-Allow-Headers: ")]
    assert name in allowed.partition(": ")[2].split(", ")


@pytest.mark.parametrize(
    "url", ["https://hits.example", "http://10.0.0.1:8080", "https://[::1]:8080", "https://a.b/c/d"]
)
def test_a_public_url(url: str) -> None:
    assert IntakeConfig(public_url=url).public_url == url


@pytest.mark.parametrize("url", ["hits.example", "https://", "https://a/", "https://a?b", "https://u@a", "ftp://a", ""])
def test_a_public_url_that_clients_could_not_use_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no slash at the end"):
        IntakeConfig(public_url=url)


@pytest.mark.parametrize("path", ["/v1/projects/public/settings", "/sourceConfig?writeKey=public"])
def test_a_refused_page_gets_no_settings(path: str) -> None:
    line = line_of_shop(public_keys=["public"], collect={"origins": ["https://shop.example"]})
    assert asked(path, PAGE, line=line).startswith("HTTP/1.1 200")
    assert asked(path, "Origin: https://other.example", line=line).startswith("HTTP/1.1 403")
