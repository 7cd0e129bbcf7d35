"""Tests of the commands as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from pipeline.config.addresses import admin_address
from pipeline.kafka.embedded.broker import free_port
from pipeline.operations.packaged_files import examples_folder
from tests.processes import children_of, is_alive
from tests.roles import free_admin_listen, wait_until

EXAMPLES = examples_folder()


def example_on_free_ports(folder: Path) -> Path:
    settings = yaml.safe_load((EXAMPLES / "hitrouter.yaml").read_text())
    settings["kafka"]["listen"] = f"127.0.0.1:{free_port()}"
    settings["intake"]["listen"] = f"127.0.0.1:{free_port()}"
    settings["admin"]["listen"] = free_admin_listen()
    file = folder / "hitrouter.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_up_restarts_a_killed_role_and_stops_all_roles(tmp_path: Path) -> None:
    file = example_on_free_ports(tmp_path)
    environment = {"SHOP_TOKEN": "a", "BLOG_TOKEN": "b", "WEBHOOK_URL": "http://127.0.0.1:9/x"}
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "up", "-c", str(file)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: log.read_text().count("partitions assigned: ") >= 4, "all workers at work")
        first = yaml.safe_load(file.read_text())["admin"]["listen"]
        for role in ("intake", "route", "deliver"):
            assert f"starting listener: owner={role}-0 " in log.read_text()
            address = f"http://{admin_address(first, role, 0)}"
            assert address in log.read_text(), "the table of the addresses"
            wait_until(lambda address=address: httpx.get(f"{address}/readyz").status_code == 200, f"{role} ready")
        (router,) = children_of(up.pid, "pipeline route")
        os.kill(router, signal.SIGKILL)
        wait_until(lambda: log.read_text().count("partitions assigned: group=route ") >= 2, "the router back")
        assert "role ended, will restart: role=route-0 how=SIGKILL" in log.read_text()
        below = children_of(up.pid)
        up.terminate()
        assert up.wait(60) == 0
        assert not any(is_alive(pid) for pid in below)
    finally:
        up.kill()


def test_validate_reports_problems_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "hitrouter.yaml").write_text("conections: {}\n")
    done = run(tmp_path, "validate")
    assert done.returncode == 1
    assert "hitrouter.yaml:1: conections: unknown key; did you mean 'connections'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_validate_warns_and_exits_with_0(tmp_path: Path) -> None:
    (tmp_path / "hitrouter.yaml").write_text("kafka: {retention: {hits_raw: 1h}}\n")
    done = run(tmp_path, "validate")
    assert done.returncode == 0 and "is valid" in done.stdout
    assert done.stderr.startswith(
        "warning: hitrouter.yaml:1: kafka.retention.hits_raw: 1 h is shorter than dedupe.window"
    )


@pytest.mark.parametrize("level", ["", "verbose"])
def test_unknown_log_level_is_a_usage_error_in_one_line(level: str, tmp_path: Path) -> None:
    for command in ("destinations", "route"):
        done = run(tmp_path, command, HITROUTER_LOG=level)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"hitrouter: HITROUTER_LOG={level!r} is not a log level: set DEBUG, INFO")
        assert done.stderr.count("\n") == 1


def test_validate_accepts_the_example(tmp_path: Path) -> None:
    environment = {"SHOP_TOKEN": "a", "BLOG_TOKEN": "b", "WEBHOOK_URL": "http://127.0.0.1:9/x"}
    done = run(tmp_path, "validate", "-c", str(EXAMPLES / "hitrouter.yaml"), **environment)
    assert done.returncode == 0
    assert "2 projects, 5 connections" in done.stdout


def test_every_command_has_help_with_an_example(tmp_path: Path) -> None:
    listed = run(tmp_path, "--help").stdout
    names = [line.split()[0] for line in listed.partition("Commands:")[2].splitlines() if line.strip()]
    assert {"up", "demo", "intake", "route", "deliver", "kafka", "validate", "ledger"} <= set(names)
    for name in names:
        assert f"Example: hitrouter {name}" in run(tmp_path, name, "--help").stdout


def test_schema_of_the_configuration_is_printed(tmp_path: Path) -> None:
    assert "connections" in json.loads(run(tmp_path, "schema", "config").stdout)["properties"]


def test_role_without_kafka_exits_with_69_and_reports_it(tmp_path: Path) -> None:
    (tmp_path / "h.yaml").write_text(f"kafka: {{bootstrap_servers: '127.0.0.1:{free_port()}'}}\nprojects: {{}}\n")
    done = run(tmp_path, "route", "-c", "h.yaml")
    assert done.returncode == 69
    assert "does not respond" in done.stderr
    assert "Traceback" not in done.stderr
