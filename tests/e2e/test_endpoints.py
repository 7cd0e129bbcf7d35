"""Tests of every endpoint of the intake over a real socket (contract.md, section 1)."""

from __future__ import annotations

import gzip
import json
import re
import time
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import read_topic
from tests.roles import Role, free_admin_listen, hit, running, wait_until

ORIGIN = {"origin": "https://shop.example"}


@pytest.fixture(scope="module")
def role(kafka: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, Role, Path]]:
    config = Config.model_validate(
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": "endpoints-"},
            "intake": {"listen": f"127.0.0.1:{free_port()}", "trusted_proxies": ["127.0.0.0/8"]},
            "admin": {"listen": free_admin_listen()},
            "enrich": {"ip": {"anonymize": True}},
            "projects": {"shop": {"tokens": ["shop-token"], "data_streams": ["stream-secret"]}},
        }
    )
    folder = tmp_path_factory.mktemp("endpoints")
    with running("intake", config, folder) as made:
        yield config, made, folder / "hitrouter.yaml"


@pytest.fixture(scope="module")
def config(role: tuple[Config, Role, Path]) -> Config:
    return role[0]


@pytest.fixture(scope="module")
def http(config: Config) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{config.intake.listen}") as client:
        yield client


def stored(config: Config, hit_id: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the only record with this id, and its headers."""
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    (record,) = [record for record in read_topic(config.kafka, topic) if record.key() == f"shop/{hit_id}".encode()]
    return json.loads(record.value() or b""), dict(record.headers() or ())  # type: ignore[arg-type]


def test_collect_answers_with_the_origin_of_the_page(config: Config, http: httpx.Client) -> None:
    body = hit("collected", projectId="shop")
    answer = http.post("/collect", content=body, headers={"content-type": "text/plain;charset=UTF-8", **ORIGIN})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["vary"] == "Origin"
    assert stored(config, "collected")[1]["endpoint"] == b"/collect"


def test_page_can_read_a_refusal(http: httpx.Client) -> None:
    answer = http.post("/collect", content=hit("1"), headers={"content-type": "text/plain", **ORIGIN})
    assert (answer.status_code, answer.json()["error"]["path"]) == (400, "projectId")
    assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]


@pytest.mark.parametrize("path", ["/collect", "/v1/t", "/v1/batch"])
def test_preflight(http: httpx.Client, path: str) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    answer = http.options(path, headers=ORIGIN | asks)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "Authorization" in answer.headers["access-control-allow-headers"]


def test_track_does_not_allow_other_origins(http: httpx.Client) -> None:
    answer = http.options("/track", headers=ORIGIN)
    assert (answer.status_code, answer.headers["allow"]) == (204, "POST, OPTIONS")
    assert "access-control-allow-origin" not in answer.headers


def test_data_stream_accepts_any_body(config: Config, http: httpx.Client) -> None:
    assert http.post("/ds/stream-secret?hitId=ds-1", content=b"free text").status_code == 204
    value, headers = stored(config, "ds-1")
    assert value["event"]["payload"] == {"query": {"hitId": "ds-1"}, "raw": "free text"}
    assert headers["endpoint"] == b"/ds"
    assert "stream-secret" not in json.dumps(value)


def test_data_stream_answers_with_a_pixel(config: Config, http: httpx.Client) -> None:
    answer = http.get("/ds/stream-secret?pixel=1&hitId=ds-2")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/gif")
    assert (answer.content[:6], len(answer.content)) == (b"GIF89a", 43)
    assert http.get("/ds/stream-secret?hitId=ds-3").status_code == 204
    assert stored(config, "ds-2")
    assert stored(config, "ds-3")


def test_unknown_data_stream_is_404(http: httpx.Client) -> None:
    assert http.post("/ds/guess", content=b"x").status_code == 404
    assert http.request("PUT", "/ds/stream-secret").headers["allow"] == "GET, POST, OPTIONS"


@pytest.mark.parametrize("auth", [("shop-token", ""), None])
def test_segment_batch_in_gzip_is_accepted(config: Config, http: httpx.Client, auth: tuple[str, str] | None) -> None:
    ids = [f"batch-{auth is None}-{number}" for number in range(3)]
    messages = [{"type": "track", "event": "E", "userId": "u", "messageId": name} for name in ids]
    body = {"batch": messages, **({} if auth else {"writeKey": "shop-token"})}
    answer = http.post(
        "/v1/batch", content=gzip.compress(json.dumps(body).encode()), headers={"content-encoding": "gzip"}, auth=auth
    )
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    for name in ids:
        value, headers = stored(config, name)
        assert value["event"]["name"] == "E"
        assert headers["endpoint"] == b"/v1/batch"


def test_segment_message_at_a_short_path_is_accepted(config: Config, http: httpx.Client) -> None:
    body = {"anonymousId": "a", "messageId": "short", "writeKey": "shop-token", "name": "Home"}
    answer = http.post("/v1/p", content=json.dumps(body), headers={"content-type": "text/plain", **ORIGIN})
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
    assert stored(config, "short")[0]["event"]["title"] == "Home"


@pytest.mark.parametrize(
    ("path", "body", "auth", "status", "code"),
    [
        ("/v1/track", b'{"event": "E", "userId": "u"}', None, 401, "unauthorized"),
        ("/v1/track", b'{"event": "E", "userId": "u"}', ("wrong", ""), 401, "unauthorized"),
        ("/v1/track", b'{"userId": "u"}', ("shop-token", ""), 400, "invalid_hit"),
        ("/v1/batch", b"[]", ("shop-token", ""), 400, "invalid_hit"),
        ("/v1/batch", b" " * 524_289, ("shop-token", ""), 400, "too_large"),
        ("/v1/other", b"{}", ("shop-token", ""), 404, "not_found"),
    ],
)
def test_segment_refusals(
    http: httpx.Client, path: str, body: bytes, auth: tuple[str, str] | None, status: int, code: str
) -> None:
    answer = http.post(path, content=body, auth=auth)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("encoded", [b"no gzip", gzip.compress(b"{}", mtime=0)[:-4], zlib.compress(b"{}")])
def test_bad_gzip_is_refused(http: httpx.Client, encoded: bytes) -> None:
    answer = http.post("/v1/batch", content=encoded, headers={"content-encoding": "gzip"}, auth=("shop-token", ""))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_content_encoding")


def test_unknown_encoding_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/batch", content=b"x", headers={"content-encoding": "br"}, auth=("shop-token", ""))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_content_encoding")


def test_gzip_bomb_uses_no_memory(role: tuple[Config, Role, Path], http: httpx.Client) -> None:
    packer = zlib.compressobj(9, wbits=31)
    first, again = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    bomb = first + again * (10 * 1024 - 1)  # 10 GiB; after a full flush equal input makes equal output

    def resident_kb() -> int:
        status = Path(f"/proc/{role[1].process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        assert found is not None
        return int(found[1])

    before = resident_kb()
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    for _ in range(3):
        try:
            answer = http.post("/track", content=bomb, headers=headers, auth=("shop-token", ""))
        except httpx.TransportError:  # refused while it was still sending
            continue
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_large")
    assert resident_kb() < before + 8_000


def test_address_from_a_trusted_proxy_is_used_and_anonymised(config: Config, http: httpx.Client) -> None:
    headers = {"content-type": "application/json", "x-forwarded-for": "6.6.6.6, 198.51.100.77"}
    sent = hit("proxied", context={"ip": "192.0.2.77"})
    assert http.post("/track", content=sent, headers=headers, auth=("shop-token", "")).status_code == 204
    value, facts = stored(config, "proxied")
    assert facts["request-ip"] == b"198.51.100.0" and value["context"] == {"ip": "192.0.2.0"}


def test_openapi_document_is_served(http: httpx.Client) -> None:
    answer = http.get("/openapi.json")
    assert answer.status_code == 200
    assert {"/track", "/collect", "/v1/batch"} <= answer.json()["paths"].keys()
    assert http.head("/openapi.json").headers["content-length"] == answer.headers["content-length"]
    assert http.delete("/openapi.json").status_code == 405


def test_tokens_and_anonymisation_change_without_a_restart(role: tuple[Config, Role, Path], http: httpx.Client) -> None:
    config, running_role, file = role
    settings = yaml.safe_load(file.read_text())
    settings["projects"]["shop"]["tokens"].append("sha256:" + sha256(b"rotated").hexdigest())
    settings["enrich"]["ip"]["anonymize"] = False
    file.write_text(yaml.safe_dump(settings))
    began = time.monotonic()
    headers = {"content-type": "application/json"}
    wait_until(
        lambda: http.post("/track", content=hit("rotated"), headers=headers, auth=("rotated", "")).status_code == 204,
        "the new token",
    )
    assert time.monotonic() - began < 5
    forwarded = {**headers, "x-forwarded-for": "6.6.6.6, 198.51.100.77"}
    assert http.post("/track", content=hit("whole"), headers=forwarded, auth=("rotated", "")).status_code == 204
    assert stored(config, "whole")[1]["request-ip"] == b"198.51.100.77"
    file.write_text("projects: [")
    running_role.wait_for("configuration refused")
    assert http.post("/track", content=hit("still"), headers=headers, auth=("rotated", "")).status_code == 204
    assert "rotated" not in running_role.log.read_text()
