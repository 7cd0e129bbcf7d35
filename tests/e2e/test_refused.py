"""Tests `hitrouter tail --refused` with intake processes, without Kafka, which refusals do not need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.config.models import Config
from pipeline.kafka.embedded.broker import free_port
from tests.roles import Role, free_admin_listen, wait_until, written

JSON = {"content-type": "application/json"}


@pytest.fixture
def config() -> Config:
    return Config.model_validate(
        {
            "kafka": {"bootstrap_servers": f"127.0.0.1:{free_port()}"},
            "intake": {"listen": f"127.0.0.1:{free_port()}", "workers": 2},
            "admin": {"listen": free_admin_listen()},
            "projects": {"shop": {"tokens": ["shop-token"], "data_streams": ["stream-secret"]}},
        }
    )


@pytest.fixture
def intakes(config: Config, tmp_path: Path) -> Iterator[list[Role]]:
    roles = []
    for slot in range(2):
        (tmp_path / str(slot)).mkdir()
        roles.append(Role("intake", config, tmp_path / str(slot), slot))
    try:
        url = f"http://{config.intake.listen}/openapi.json"
        wait_until(lambda: all(_answers(role) for role in roles) and httpx.get(url).status_code == 200, "both intakes")
        yield roles
    finally:
        for role in roles:
            role.kill()


def _answers(role: Role) -> bool:
    return role.logged("topics are not checked yet")


def tail(config: Config, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = written(config, folder, "cli.yaml")
    command = [sys.executable, "-m", "pipeline", "tail", "--refused", "-c", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_refused_requests_of_all_intakes_are_shown_without_secrets(
    config: Config, intakes: list[Role], tmp_path: Path
) -> None:
    url = f"http://{config.intake.listen}"
    sent = 0
    for _ in range(8):  # each connection gets to one of the two
        assert (
            httpx.post(f"{url}/track", content=b'{"event": {}}', headers=JSON, auth=("shop-token", "")).status_code
            == 400
        )
        assert httpx.post(f"{url}/track", content=b"{}", headers=JSON, auth=("wrong-token", "")).status_code == 401
        assert httpx.get(f"{url}/ds/stream-secret-2?token=in-the-query").status_code == 404
        sent += 3
    shown = tail(config, tmp_path, "--once", "--json")
    entries = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(entries) == sent, shown.stderr
    assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)
    invalid = next(entry for entry in entries if entry["code"] == "invalid_hit")
    assert (invalid["project"], invalid["path"], invalid["method"], invalid["status"]) == (
        "shop",
        "/track",
        "POST",
        400,
    )
    assert "body" not in invalid and invalid["message"]
    for text in (shown.stdout, tail(config, tmp_path, "--once").stdout):
        assert "invalid_hit" in text and "/ds/***" in text
        assert not any(secret in text for secret in ("wrong-token", "stream-secret", "in-the-query", "127.0.0.1"))
    only = tail(config, tmp_path, "--once", "--project", "shop", "--limit", "2").stdout
    assert only.count("invalid_hit") == len(only.splitlines()) == 2


def test_tail_shows_new_refusals_until_ctrl_c(config: Config, intakes: list[Role], tmp_path: Path) -> None:
    file = written(config, tmp_path, "cli.yaml")
    command = [sys.executable, "-u", "-m", "pipeline", "tail", "--refused", "--with-body", "-c", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            assert "waiting for refused requests" in process.stderr.readline()
            url = f"http://{config.intake.listen}/track"
            httpx.post(url, content=b'{"event": "none"}', headers=JSON, auth=("shop-token", ""))
            assert "400 invalid_hit" in process.stdout.readline()
            assert '{"event": "none"}' in process.stdout.readline()
            intakes[1].kill()
            assert "does not respond" in process.stderr.readline()
            httpx.post(url, content=b"no JSON", headers=JSON, auth=("shop-token", ""))
            assert "400 invalid_json" in process.stdout.readline()
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(15) == 0
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()


def test_tail_without_an_intake_reports_the_addresses_and_advice(config: Config, tmp_path: Path) -> None:
    done = tail(config, tmp_path)
    assert done.returncode == 69
    assert f"no intake responds at {config.admin.listen}" in done.stderr and "--admin" in done.stderr
    elsewhere = f"127.0.0.1:{free_port()}"
    assert elsewhere in tail(config, tmp_path, "--admin", elsewhere).stderr
    assert tail(config, tmp_path, "--admin", "nowhere").returncode == 2
    assert tail(config, tmp_path, "--hit-id", "x").returncode == 2
