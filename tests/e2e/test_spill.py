"""Kafka goes away under traffic: what `on_kafka_failure` promises (product.md, contract.md section 1)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import aiohttp
import pytest

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from pipeline.operations.read_topic import read_topic
from tests.roles import Role, hit, running, wait_until

pytestmark = pytest.mark.anyio
RATE = 150
AWAY_SECONDS = 8.0


def configured(broker: EmbeddedBroker, folder: Path, on_failure: Literal["reject", "spill"]) -> Config:
    return Config.model_validate(
        {
            "kafka": {"bootstrap_servers": broker.bootstrap_servers},
            "intake": {
                "listen": f"127.0.0.1:{free_port()}",
                "on_kafka_failure": on_failure,
                "spill": {"folder": str(folder / "spill")},
            },
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
            "projects": {"shop": {"tokens": ["shop-token"]}},
        }
    )


async def send(config: Config, stop: asyncio.Event, answers: dict[str, int]) -> None:
    """Each hit once, its answer by id; 0 for none."""
    tasks: set[asyncio.Task[None]] = set()

    async def post(session: aiohttp.ClientSession, name: str) -> None:
        try:
            async with session.post(
                f"http://{config.intake.listen}/track",
                data=hit(name),
                headers={"content-type": "application/json"},
                auth=aiohttp.BasicAuth("shop-token", ""),
            ) as answer:
                answers[name] = answer.status
        except (aiohttp.ClientError, TimeoutError):
            answers[name] = 0

    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=1000)) as session:
        number = 0
        while not stop.is_set():
            tasks.add(asyncio.create_task(post(session, f"hit-{number}")))
            number += 1
            await asyncio.sleep(1 / RATE)
        await asyncio.gather(*tasks)


def on_topic(config: Config) -> Counter[str]:
    return Counter(
        (record.key() or b"").decode().removeprefix("shop/") for record in read_topic(config.kafka, "hits-raw")
    )


@pytest.mark.parametrize("on_failure", ["reject", "spill"])
async def test_kafka_is_away_for_a_while(tmp_path: Path, on_failure: Literal["reject", "spill"]) -> None:
    broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", tmp_path / "kafka")
    await asyncio.to_thread(broker.start)
    config = configured(broker, tmp_path, on_failure)
    answers: dict[str, int] = {}
    stop = asyncio.Event()
    try:
        with running("intake", config, tmp_path) as role:
            sending = asyncio.create_task(send(config, stop, answers))
            await asyncio.sleep(2)
            await asyncio.to_thread(broker.kill)
            await asyncio.sleep(AWAY_SECONDS)
            await asyncio.to_thread(broker.start)
            await asyncio.sleep(3)
            stop.set()
            await sending
            if on_failure == "spill":
                await asyncio.to_thread(wait_until, lambda: "are in Kafka now" in role.log.read_text(), "the replay")
                await asyncio.to_thread(
                    wait_until, lambda: not list((tmp_path / "spill").rglob("*.spill")), "an empty spill log"
                )
            accepted = {name for name, status in answers.items() if status == 204}
            statuses = Counter(answers.values())
            assert accepted <= on_topic(config).keys()
            if on_failure == "reject":
                assert set(statuses) == {204, 503}
                assert statuses[503] > RATE * AWAY_SECONDS / 2
            else:
                assert set(statuses) == {204}
    finally:
        broker.stop()


async def test_a_killed_intake_replays_what_its_former_life_spilled(tmp_path: Path) -> None:
    broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", tmp_path / "kafka")
    await asyncio.to_thread(broker.start)
    config = configured(broker, tmp_path, "spill")
    answers: dict[str, int] = {}
    stop = asyncio.Event()
    try:
        with running("intake", config, tmp_path) as role:
            sending = asyncio.create_task(send(config, stop, answers))
            await asyncio.sleep(1)
            await asyncio.to_thread(broker.kill)
            await asyncio.sleep(5)
            role.kill()
            successor = Role("intake", config, tmp_path)
            try:
                began = time.monotonic()
                await asyncio.to_thread(successor.wait_for, "ready", 2)
                assert time.monotonic() - began < 30
                await asyncio.sleep(2)
                stop.set()
                await sending
                await asyncio.to_thread(broker.start)
                await asyncio.to_thread(
                    wait_until, lambda: not list((tmp_path / "spill").rglob("*.spill")), "an empty spill log"
                )
            finally:
                assert await asyncio.to_thread(successor.stop) == 0
        accepted = {name for name, status in answers.items() if status == 204}
        assert set(answers.values()) <= {204, 0}
        assert len(accepted) > 3 * RATE
        assert accepted <= on_topic(config).keys()
    finally:
        broker.stop()
