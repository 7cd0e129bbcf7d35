"""From 204 to a read_committed reader at 1,000 hits per second, through the real intake and router."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import numpy as np
from confluent_kafka import Consumer, TopicPartition

from bench.workload import PARTITIONS, configure
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames
from tests.roles import free_admin_listen

_WARM_SECONDS = 4.0


async def _send(url: str, rate: float, seconds: float, answered: dict[str, float]) -> None:
    connector = aiohttp.TCPConnector(limit=64)
    auth = aiohttp.BasicAuth("token", "")
    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(connector=connector, auth=auth) as session:

        async def one(hit_id: str) -> None:
            body = {"hitId": hit_id, "event": {"name": "E", "user": {"userId": hit_id}, "pad": "x" * 850}}
            async with session.post(url, json=body) as answer:
                if answer.status == 204:
                    answered[hit_id] = time.time()

        began, number = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            while number < passed * rate:
                task = asyncio.create_task(one(f"l{number}"))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.sleep(0.002)
        if tasks:
            await asyncio.wait(set(tasks), timeout=10)


def measure_latency(folder: Path, servers: str, rate: float = 1000.0, seconds: float = 20.0) -> dict[str, float]:
    """p50 and p99 in milliseconds, and the rate that was reached."""
    listen = f"127.0.0.1:{free_port()}"
    file, config = configure(
        folder, servers, "latency-", intake={"listen": listen}, admin={"listen": free_admin_listen()}
    )
    roles = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", role, "-c", str(file)], stderr=(folder / f"{role}.log").open("wb")
        )
        for role in ("intake", "route")
    ]
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "latency",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 10,
        }
    )
    topic = TopicNames(config.kafka.topic_prefix).deliveries("one")
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    arrived: dict[str, float] = {}
    answered: dict[str, float] = {}
    try:
        time.sleep(8)  # both roles are up and idle
        sender = subprocess.Popen(
            [sys.executable, "-m", "bench.latency", f"http://{listen}/track", str(rate), str(seconds)],
            stdout=subprocess.PIPE,
        )
        deadline = time.monotonic() + seconds + 15
        while time.monotonic() < deadline and (sender.poll() is None or len(arrived) < 1):
            for message in consumer.consume(1000, 0.02):
                if message.error() is None:
                    arrived[json.loads(message.value() or b"")["hitId"]] = time.time()
        assert sender.stdout is not None
        answered = json.loads(sender.stdout.read())
        for message in consumer.consume(5000, 2.0):
            if message.error() is None:
                arrived.setdefault(json.loads(message.value() or b"")["hitId"], time.time())
    finally:
        for role in roles:
            role.kill()
            role.wait()
        consumer.close()
    warm = min(answered.values()) + _WARM_SECONDS
    waits = [(arrived[i] - at) * 1e3 for i, at in answered.items() if i in arrived and at > warm]
    return {
        "p50_ms": float(np.percentile(waits, 50)),
        "p99_ms": float(np.percentile(waits, 99)),
        "per_second": len(answered) / seconds,
    }


if __name__ == "__main__":
    journal: dict[str, float] = {}
    asyncio.run(_send(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), journal))
    print(json.dumps(journal))
