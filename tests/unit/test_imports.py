"""Tests that a role imports only what its connections need, so that it starts quickly and uses little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

_CLIENTS = {"google", "grpc", "pyarrow", "psycopg", "clickhouse_connect", "httpx", "numpy"}
_NEVER = {"authlib", "httpx2", "rich", "prompt_toolkit", "typer", "pygments", "pandas", "IPython"}
"""Command lines of libraries, and clients that no configuration here uses."""
_WEBHOOK = {"destination": "Webhook", "settings": {"url": "http://127.0.0.1:9/"}}
_FILES = {"destination": "Files", "settings": {"path": "/tmp/x"}}
_PARQUET = {"destination": "Files", "settings": {"path": "/tmp/x", "format": "parquet"}}
_POSTGRES = {"destination": "PostgreSQL", "settings": {"dsn": "postgresql://x@127.0.0.1/x", "table": "t"}}
_CLICKHOUSE = {"destination": "ClickHouse", "settings": {"url": "http://127.0.0.1:9", "table": "t"}}

_ROUTE = "from pipeline.router.app import build_route_app; build_route_app(watched, 0)"
_DELIVER = (
    "from pipeline.delivery.app import import_clients, wanted_apps; import_clients(watched.config);"
    "apps = [build() for _, build in wanted_apps(watched.config, 0).values()]"
)
_INTAKE = "from pipeline.intake import run_intake"
_UP = "from pathlib import Path; from pipeline.supervisor import Supervisor"


def packages(build: str, folder: Path, **connections: Any) -> set[str]:
    """Return the top-level packages that a role has imported once it is built, without Kafka."""
    file = folder / "h.yaml"
    file.write_text(yaml.safe_dump({"connections": connections}))
    code = (
        "import asyncio, json, sys; from pathlib import Path; from pipeline.cli import watch_checked\n"
        f"asyncio.set_event_loop(asyncio.new_event_loop()); watched = watch_checked(Path({str(file)!r}))\n{build}\n"
        "print(json.dumps([len(sys.modules), sorted(name for name in sys.modules if '.' not in name)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, names = json.loads(done.stdout.splitlines()[-1])
    assert count < 1200
    return set(names)


@pytest.mark.parametrize("build", [_ROUTE, _DELIVER, _INTAKE, _UP], ids=["route", "deliver", "intake", "up"])
def test_role_imports_no_client_that_its_file_does_not_need(build: str, tmp_path: Path) -> None:
    found = packages(build, tmp_path, a={"destination": "Kafka"})
    needed = {"numpy"} if build is _ROUTE else set()
    assert found & (_CLIENTS | _NEVER) == needed


@pytest.mark.parametrize(
    ("connection", "clients"),
    [
        (_WEBHOOK, {"httpx"}),
        (_FILES, set()),
        (_POSTGRES, {"psycopg"}),
        (_CLICKHOUSE, {"clickhouse_connect"}),
    ],
    ids=["webhook", "files", "postgresql", "clickhouse"],
)
def test_deliverer_imports_the_clients_of_its_connections(
    connection: dict[str, Any], clients: set[str], tmp_path: Path
) -> None:
    found = packages(_DELIVER, tmp_path, a=connection)
    assert found & _CLIENTS - {"numpy"} == clients
    assert not found & _NEVER


def test_router_imports_no_client_of_its_destinations(tmp_path: Path) -> None:
    """Except psycopg, which parses the address of a database when the file is checked."""
    found = packages(_ROUTE, tmp_path, w=_WEBHOOK, f=_FILES, q=_PARQUET, p=_POSTGRES, c=_CLICKHOUSE)
    assert found & (_CLIENTS | _NEVER) == {"numpy", "psycopg"}


def test_condition_works_without_the_command_line_of_the_cel_library(tmp_path: Path) -> None:
    found = packages(_ROUTE, tmp_path, a={"destination": "Kafka", "when": "event.name == 'E'"})
    assert "cel" in found
    assert not found & _NEVER


def test_help_imports_only_its_command() -> None:
    code = (
        "import sys, contextlib\nsys.argv = ['hitrouter', 'route', '--help']\n"
        "from pipeline.__main__ import main\n"
        "import pipeline.process.stop as stop\nstop.SIGNALS._end_process = lambda code: None\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "print(len(sys.modules), {'pydantic', 'confluent_kafka', 'faust'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, _, heavy = done.stdout.splitlines()[-1].partition(" ")
    assert int(count) < 250
    assert heavy == "set()"


def test_read_only_commands_do_not_import_faust() -> None:
    """Imports took 2.5 s of CPU time, most of it for Faust's applications."""
    code = (
        "import sys; from pipeline.operations.explain import explain; from pipeline.operations.ledger import read_ledger;"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    workers = {
        "pipeline.router.app",
        "pipeline.delivery.app",
        "pipeline.kafka.transport.app",
        "faust.app.base",
        "aiokafka",
    }
    assert workers.isdisjoint(done.stdout.split())
