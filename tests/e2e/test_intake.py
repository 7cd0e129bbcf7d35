"""Tests of the intake over a real socket (contract.md, section 1)."""

from __future__ import annotations

import base64
import json
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from pipeline.config.addresses import admin_address
from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.producer import ACKNOWLEDGE_MS
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.operations.read_topic import read_topic
from tests.roles import Role, free_admin_listen, hit, listens, running, wait_until

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "hit.json"
JSON = {"content-type": "application/json"}
# Each request on a connection of its own; the certificates that nothing here needs take 20 ms to load.
CLIENT = httpx.Client(verify=False, limits=httpx.Limits(max_keepalive_connections=0), timeout=15)


@pytest.fixture(scope="module")
def intake(kafka: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    config = Config.model_validate(
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": "intake-"},
            "intake": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": free_admin_listen()},
            "projects": {"shop": {"tokens": ["shop-token", "second-token"], "data_streams": ["stream-secret"]}},
        }
    )
    with running("intake", config, tmp_path_factory.mktemp("intake")):
        yield config


def post(
    config: Config,
    body: bytes,
    token: str | None = "shop-token",
    path: str = "/track",
    method: str = "POST",
    **headers: str,
) -> httpx.Response:
    auth = (token, "") if token is not None else None
    sent = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    return CLIENT.request(method, f"http://{config.intake.listen}{path}", content=body, headers=sent, auth=auth)


def stored(config: Config) -> dict[str, tuple[bytes, dict[str, bytes]]]:
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    return {
        (record.key() or b"").decode(): (record.value() or b"", dict(record.headers() or ()))  # type: ignore[arg-type]
        for record in read_topic(config.kafka, topic)
    }


def test_documented_example_is_204_and_stored_unchanged(intake: Config) -> None:
    body = EXAMPLE.read_bytes()
    answer = post(intake, body, user_agent="agent/1")
    assert (answer.status_code, answer.content) == (204, b"")
    value, headers = stored(intake)[f"shop/{json.loads(body)['hitId']}"]
    assert value == body
    assert headers["project"] == b"shop"
    assert headers["request-ip"] == b"127.0.0.1"
    assert headers["user-agent"] == b"agent/1"
    assert headers["endpoint"] == b"/track"
    assert headers["received-at"].isdigit()
    assert "generated" not in headers


def test_hit_without_an_id_gets_a_uuid_7_in_its_key(intake: Config) -> None:
    body = hit(None, mark="nameless")
    assert post(intake, body).status_code == 204
    (key,) = [key for key, (value, _) in stored(intake).items() if value == body]
    assert key.removeprefix("shop/")[14] == "7"
    assert stored(intake)[key][1]["generated"] == b"hitId"


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_content_type_with_or_without_parameters_is_accepted(intake: Config, content_type: str) -> None:
    assert post(intake, hit("type"), content_type=content_type).status_code == 204


def test_both_tokens_of_a_project_are_accepted(intake: Config) -> None:
    assert post(intake, hit("rotation"), token="second-token").status_code == 204


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Basic " + base64.b64encode(b"wrong:").decode(),
        "Basic " + base64.b64encode(b"shop-token").decode(),
        "Basic " + base64.b64encode(b"shop-token:word").decode(),
        "Bearer shop-token",
        "Basic ???",
        "Basic",
        "",
    ],
)
def test_unknown_token_is_401_before_the_body_is_read(intake: Config, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    answer = post(intake, b"x" * 100_000, token=None, **headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert answer.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("body", "headers", "code", "path"),
    [
        (b"not JSON", {}, "invalid_json", ""),
        (hit("1"), {"content_type": "text/plain"}, "invalid_content_type", ""),
        (b'{"event": {}}', {}, "invalid_hit", "event.user"),
        (hit("1", integrations={"Webhook": "false"}), {}, "invalid_hit", "integrations.Webhook"),
        (hit("1", pad="x" * 65_536), {}, "too_large", ""),
    ],
)
def test_bad_hit_is_400_with_code_path_and_message(
    intake: Config, body: bytes, headers: dict[str, str], code: str, path: str
) -> None:
    answer = post(intake, body, **headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["path"]) == (code, path)
    assert error["message"]


def test_hit_of_exactly_65536_bytes_is_accepted(intake: Config) -> None:
    body = hit("large", pad="x" * (65_536 - len(hit("large", pad=""))))
    assert len(body) == 65_536
    assert post(intake, body).status_code == 204


def test_other_methods_and_paths_are_405_and_404(intake: Config) -> None:
    answer = post(intake, b"", method="GET")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, OPTIONS")
    assert post(intake, hit("1"), path="/elsewhere").status_code == 404


def exchange(config: Config, data: bytes) -> bytes:
    host, _, port = config.intake.listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
        return received


def request(body: bytes, *more: str) -> bytes:
    authorization = base64.b64encode(b"shop-token:").decode()
    lines = ["POST /track HTTP/1.1", "Host: x", f"Authorization: Basic {authorization}", *more]
    return "\r\n".join(["", *lines][1:]).encode() + b"\r\nContent-Type: application/json\r\n\r\n" + body


def test_pipelined_requests_are_answered_in_order(intake: Config) -> None:
    bodies = [hit("p1"), b"broken", hit("p2")]
    data = b"".join(request(body, f"Content-Length: {len(body)}") for body in bodies[:2])
    data += request(bodies[2], f"Content-Length: {len(bodies[2])}", "Connection: close")
    assert re.findall(rb"HTTP/1.1 (\d+)", exchange(intake, data)) == [b"204", b"400", b"204"]


def test_chunked_body_is_accepted(intake: Config) -> None:
    body = hit("chunked")
    chunks = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    answer = exchange(intake, request(chunks, "Transfer-Encoding: chunked", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize(
    "data",
    [
        request(hit("1"), "Content-Length: 5", "Transfer-Encoding: chunked"),
        request(hit("1"), f"X-Long: {'y' * 9000}", "Content-Length: 5"),
        b"\x16\x03\x01 not HTTP at all\r\n\r\n",
    ],
    ids=["length and chunked", "long header", "no HTTP"],
)
def test_broken_request_closes_only_its_http_connection(intake: Config, data: bytes) -> None:
    assert b"204" not in exchange(intake, data)
    assert post(intake, hit("others")).status_code == 204


def test_health_and_metrics_are_on_the_admin_port_only(intake: Config) -> None:
    for path in ("/healthz", "/readyz"):
        assert httpx.get(f"http://{intake.admin.listen}{path}").status_code == 200
    metrics = httpx.get(f"http://{intake.admin.listen}/metrics").text
    assert 'hitrouter_intake_refused_total{code="unauthorized"' in metrics
    assert httpx.get(f"http://{intake.intake.listen}/metrics").status_code == 404


_ROOM = 8
"""Capacity of the producer's queue in the next test."""


def test_intake_without_kafka_answers_503_with_retry_after(tmp_path: Path) -> None:
    """With a full queue, the 503 comes at once; otherwise hits first wait for their acknowledgements."""
    broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", tmp_path / "kafka")
    config = Config.model_validate(
        {
            "kafka": {
                "bootstrap_servers": broker.bootstrap_servers,
                "client": {"queue.buffering.max.messages": _ROOM},
            },
            "intake": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": free_admin_listen()},
            "projects": {"shop": {"tokens": ["shop-token"]}},
        }
    )
    ready = f"http://{config.admin.listen}/readyz"

    def refused(hit_id: str) -> tuple[float, int]:
        """Return the seconds until the 503, and its Retry-After."""
        began = time.monotonic()
        answer = post(config, hit(hit_id))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        return time.monotonic() - began, int(answer.headers["retry-after"])

    role = Role("intake", config, tmp_path)
    try:
        wait_until(lambda: listens(config), "the open port")
        refused("before")
        assert httpx.get(ready).status_code == 503
        broker.start()
        role.wait_for("ready: ")
        assert httpx.get(ready).status_code == 200
        assert post(config, hit("between")).status_code == 204
        broker.kill()
        with ThreadPoolExecutor(2 * _ROOM) as senders:
            answers = list(senders.map(refused, [f"after-{number}" for number in range(2 * _ROOM)]))
        # Those in the queue get the time that Kafka has; there is no room for the others.
        assert [waited >= ACKNOWLEDGE_MS / 1000 for waited, _ in sorted(answers)] == [False] * _ROOM + [True] * _ROOM
        retry_after = {seconds for _, seconds in answers}
        assert retry_after <= {1, 2, 3, 4, 5} and len(retry_after) > 1  # not all at once again
        assert role.stop() == 0
        assert "shop-token" not in role.log.read_text()
    finally:
        role.kill()
        broker.stop()


def test_wrong_topic_ends_the_process(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config()
    ensure_topics(config)
    other = config.model_copy(update={"kafka": config.kafka.model_copy(update={"partitions": 5})})
    role = Role("intake", other, tmp_path)
    try:
        assert role.process.wait(30) != 0
    finally:
        role.kill()
    assert "declared 5" in role.log.read_text()


def test_address_in_use_is_a_clear_error(kafka: EmbeddedBroker, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = Config.model_validate(
            {
                "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": "taken-"},
                "intake": {"listen": f"127.0.0.1:{taken.getsockname()[1]}"},
                "admin": {"listen": free_admin_listen()},
            }
        )
        role = Role("intake", config, tmp_path)
        assert role.process.wait(30) == 1
        assert "change `listen`" in role.log.read_text()


def test_two_processes_share_one_port(intake: Config, tmp_path: Path) -> None:
    def accepted(slot: int) -> float:
        metrics = httpx.get(f"http://{admin_address(intake.admin.listen, 'intake', slot)}/metrics").text
        found = re.search(r'hitrouter_intake_accepted_total{project="shop"} (\S+)', metrics)
        return float(found[1]) if found else 0.0

    before = accepted(0)
    with running("intake", intake, tmp_path, slot=1):
        for number in range(40):  # each on a connection of its own, which the kernel gives to either
            assert post(intake, hit(f"shared-{number}")).status_code == 204
        first, second = accepted(0) - before, accepted(1)
    assert first + second == 40
    assert min(first, second) > 0


def test_slow_clients_do_not_delay_others(intake: Config) -> None:
    """2,000 HTTP connections from four addresses send a header byte by byte; they are closed after five seconds."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    host, _, port = intake.intake.listen.rpartition(":")
    slow = []
    for number in range(2000):
        client = socket.create_connection((host, int(port)), source_address=(f"127.0.0.{2 + number % 4}", 0))
        client.sendall(b"POST /track HTTP/1.1\r\nHos")
        slow.append(client)
    for number in range(100):
        assert post(intake, hit(f"among the slow {number}")).status_code == 204

    def closed(client: socket.socket) -> bool:
        client.setblocking(False)
        try:
            return client.recv(1) == b""
        except BlockingIOError:
            return False

    wait_until(lambda: all(closed(client) for client in slow[::100]), "the end of the slow", 15)
    for client in slow:
        client.close()
