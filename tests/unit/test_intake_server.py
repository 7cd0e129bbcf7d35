"""Shutdown of an intake without Kafka, with an endless request and a metrics client that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, Watched, load_config
from pipeline.errors import BrokerUnavailable, ConfigurationError
from pipeline.intake import server
from pipeline.kafka.embedded.broker import free_port
from pipeline.telemetry.admin import admin_endpoint
from pipeline.telemetry.health import Health
from tests.roles import free_admin_listen


async def until_open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(10):
        while True:
            try:
                return await asyncio.open_connection(host, int(port), limit=1)
            except OSError:
                await asyncio.sleep(0.01)


def watched(folder: Path, config: Config) -> Watched:
    file = folder / "h.yaml"
    file.write_text(config.model_dump_json(exclude_defaults=True))
    return Watched(file, load_config)


def test_a_second_intake_of_the_same_slot_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All slots share the port for hits, so only the admin port shows that the slot is taken."""
    monkeypatch.setattr("pipeline.telemetry.admin_port.WAIT_SECONDS", 0.2)
    address, hits = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    config = Config.model_validate({"admin": {"listen": address}, "intake": {"listen": hits}})
    with (
        admin_endpoint(Health("intake", 0), address),
        pytest.raises(ConfigurationError, match=f"cannot listen on {address}.*intake-0"),
    ):
        server.run_intake(watched(tmp_path, config))
    with socket.socket() as asking:
        host, _, port = hits.rpartition(":")
        assert asking.connect_ex((host, int(port))) != 0


def test_shutdown_ends_in_time_despite_stuck_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[object] = []

    def ensure_topics(*_: Any) -> None:
        checks.append(None)
        raise BrokerUnavailable("no Kafka")

    monkeypatch.setattr(server, "ensure_topics", ensure_topics)
    monkeypatch.setattr(server, "_RELOAD_SECONDS", 0.01)
    monkeypatch.setattr(server, "_DRAIN_SECONDS", 0.5)
    config = Config.model_validate(
        {
            "kafka": {"bootstrap_servers": "127.0.0.1:1"},
            "intake": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": free_admin_listen()},
        }
    )

    async def live_and_end() -> None:
        serving = asyncio.create_task(server._serve(watched(tmp_path, config), 0, health))
        _, half = await until_open(config.intake.listen)
        half.write(b"POST /track HTTP/1.1\r\nHos")
        _, deaf = await until_open(config.admin.listen)
        with contextlib.suppress(TimeoutError):
            while True:  # until no socket between us has room
                deaf.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
                await asyncio.wait_for(deaf.drain(), 0.2)
        checks.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(server._DRAIN_SECONDS + 5):
            await serving
        half.close()
        deaf.close()

    health = Health("intake", 0)
    with admin_endpoint(health, config.admin.listen):
        asyncio.run(live_and_end())
    assert not any(thread.name == "admin" for thread in threading.enumerate()), "it waits for the reader"
    assert len(checks) <= 3  # each would be a thread that the end waits for
