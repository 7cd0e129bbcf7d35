"""The end of an intake that nobody lets go: no Kafka, a request that never ends, a reader of metrics that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.errors import BrokerUnavailable, ConfigurationError
from pipeline.intake import server
from pipeline.kafka.embedded.broker import free_port


async def until_open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(10):
        while True:
            try:
                return await asyncio.open_connection(host, int(port), limit=1)
            except OSError:
                await asyncio.sleep(0.01)


def test_a_second_intake_of_the_same_slot_is_told_and_takes_no_hits() -> None:
    """The port of the hits is shared by the slots, so it could not know by that."""
    address = f"127.0.0.1:{free_port()}"

    async def twice() -> None:
        first = await server._serve_admin(address, lambda: True)
        try:
            with pytest.raises(ConfigurationError, match=f"can't listen on {address}"):
                await server._serve_admin(address, lambda: True)
        finally:
            await first.cleanup()

    asyncio.run(twice())


def test_it_ends_in_time_whoever_holds_on_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
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
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
        }
    )

    async def live_and_end() -> None:
        serving = asyncio.create_task(server._serve(config, lambda: None, 0))
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

    asyncio.run(live_and_end())
    assert len(checks) <= 3  # each would be a thread that the end waits for
