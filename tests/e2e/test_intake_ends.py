"""Tests of the graceful shutdown of the intake, and that its log holds no secret and no personal data."""

from __future__ import annotations

import base64
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import read_topic
from tests.roles import hit, running, wait_until


def request(body: bytes) -> bytes:
    token = base64.b64encode(b"shop-token:").decode()
    head = f"POST /track HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {token}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_requests_in_progress_are_answered_and_readiness_fails_first(
    kafka: EmbeddedBroker, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_config()
    host, _, port = config.intake.listen.rpartition(":")
    address = (host, int(port))
    assert kafka.process is not None
    with running("intake", config, tmp_path) as role:
        ready = f"http://{config.admin.listen}/readyz"
        assert httpx.get(ready).status_code == 200
        half = request(hit("half", secret="body-of-a-hit"))
        with socket.create_connection(address, 20) as waiting, socket.create_connection(address, 20) as sending:
            sending.sendall(half[:-10])
            kafka.process.send_signal(signal.SIGSTOP)
            try:
                waiting.sendall(request(hit("waiting")))
                role.process.terminate()
                wait_until(lambda: httpx.get(ready).status_code == 503, "not ready", 5)
            finally:
                kafka.process.send_signal(signal.SIGCONT)
            sending.sendall(half[-10:])
            assert waiting.recv(4096).startswith(b"HTTP/1.1 204")
            assert sending.recv(4096).startswith(b"HTTP/1.1 204")
        assert role.process.wait(10) == 0
    keys = {record.key() for record in read_topic(config.kafka, TopicNames(config.kafka.topic_prefix).hits_raw)}
    assert keys == {b"shop/waiting", b"shop/half"}


def test_log_has_no_token_identity_or_body(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(projects={"shop": {"tokens": ["shop-token"], "data_streams": ["stream-secret"]}})
    url = f"http://{config.intake.listen}"
    json_type = {"content-type": "application/json"}
    good, bad = hit("1", userId="secret-person"), b'{"event": {"secret-key": "secret-person"}, "context": 5}'
    with running("intake", config, tmp_path) as role:
        for body, status in ((good, 204), (bad, 400), (b"{secret-person", 400)):
            answer = httpx.post(f"{url}/track", content=body, headers=json_type, auth=("shop-token", ""))
            assert answer.status_code == status
        assert httpx.post(f"{url}/track", content=good, auth=("wrong-secret", "")).status_code == 401
        assert httpx.post(f"{url}/ds/stream-secret?userId=secret-person", content=b"x").status_code == 204
        assert httpx.post(f"{url}/ds/wrong-secret", content=b"x").status_code == 404
        message = {"userId": "secret-person", "event": "E", "writeKey": "wrong-secret"}
        assert httpx.post(f"{url}/v1/track", json=message).status_code == 401
        assert role.stop() == 0
        log = role.log.read_text()
    assert "ready" in log
    encoded = base64.b64encode(b"shop-token:").decode()
    for secret in ("secret", "shop-token", encoded):
        assert secret not in log
