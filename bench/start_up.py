"""How long a role takes from its spawn to its first commit, what it costs, and how soon a killed one's partitions flow again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from bench.measure import cpu_seconds
from bench.workload import OUTPUTS, PARTITIONS, configure, hit
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transport.settings import SESSION_TIMEOUT_MS

GOAL_SECONDS = SESSION_TIMEOUT_MS / 1000 + 4
_DEADLINE_SECONDS = 90.0
_HITS_PER_SECOND = 50.0


class StartUp(NamedTuple):
    """Seconds from the spawn to the first commit, seconds of CPU until then, and seconds from kill -9 to the next commit."""

    first_commit: float
    cpu: float
    after_kill: float


def measure_start_up(folder: Path, servers: str, rounds: int) -> dict[str, list[StartUp]]:
    """By role one StartUp per round. The deliverer has four connections, of two kinds. `PYTHONPATH` may name another checkout."""
    files = {
        f"f{number}": {"destination": "Files", "settings": {"path": str(folder / f"f{number}")}} for number in (1, 2)
    }
    hooks = {
        f"h{number}": {
            "destination": "Webhook",
            "settings": {"url": "http://127.0.0.1:9/"},
            "delivery": {"allow_private": True},
        }
        for number in (1, 2)
    }
    topics = {name: {"destination": "Kafka"} for name in OUTPUTS}
    file, config = configure(folder, servers, "start-up-", connections=files | hooks | topics)
    names = TopicNames(config.kafka.topic_prefix)
    found: dict[str, list[StartUp]] = {"route": [], "deliver": []}
    groups = {
        "route": _Group(servers, f"{names.prefix}route", names.hits_raw),
        "deliver": _Group(servers, f"{names.prefix}deliver-f1", names.deliveries("f1")),
    }
    with _hits(servers, names.hits_raw), _started("route", file, folder) as router:
        groups["route"].wait_beyond(0)
        router.kill()
        router.wait()
        for role in found:
            with _started("route", file, folder) if role == "deliver" else _nothing():
                for _ in range(rounds):
                    found[role].append(_one(role, file, folder, groups[role]))
    return found


def told(found: dict[str, list[StartUp]]) -> str:
    """The medians as lines."""
    return "\n".join(
        f"start of {role}: first commit after {median(one.first_commit for one in rounds):.1f} s, "
        f"{median(one.cpu for one in rounds):.2f} s of CPU; partitions of a killed one flow again after "
        f"{median(one.after_kill for one in rounds):.1f} s, {max(one.after_kill for one in rounds):.1f} at most (goal {GOAL_SECONDS:.0f})"
        for role, rounds in found.items()
    )


def _one(role: str, file: Path, folder: Path, group: _Group) -> StartUp:
    before = group.committed()
    began = time.monotonic()
    with _started(role, file, folder) as first:
        before = group.wait_beyond(before)
        first_commit, cpu = time.monotonic() - began, cpu_seconds(first.pid)
        time.sleep(1.0)
        first.kill()
        killed = time.monotonic()
        first.wait()
        before = group.committed()
    with _started(role, file, folder) as again:
        group.wait_beyond(before)
        after_kill = time.monotonic() - killed
        again.terminate()
        again.wait(30)
    return StartUp(first_commit, cpu, after_kill)


@contextmanager
def _started(role: str, file: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{role}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", role, "-c", str(file)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _hits(servers: str, topic: str) -> Iterator[None]:
    """Some hits, all the time."""
    stopping = threading.Event()

    def send() -> None:
        producer = Producer({"bootstrap.servers": servers})
        number = 0
        while not stopping.wait(1 / _HITS_PER_SECOND):
            key, value = hit(number)
            producer.produce(topic, value, key, headers=[("project", b"shop")])
            producer.poll(0)
            number += 1
        producer.flush(10)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(20)


class _Group:
    """What a group has committed in one topic."""

    def __init__(self, servers: str, group: str, topic: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": servers, "group.id": group, "log_level": 0})
        self._asked = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]

    def committed(self) -> int:
        """The sum of its offsets."""
        while True:
            try:
                return sum(max(0, found.offset) for found in self._consumer.committed(self._asked, timeout=30))
            except KafkaException:  # the coordinator is still loading
                time.sleep(0.2)

    def wait_beyond(self, before: int) -> int:
        """Wait until it has committed more than `before`; the new sum."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while (now := self.committed()) <= before:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing was committed within {_DEADLINE_SECONDS:.0f} s")
            time.sleep(0.05)
        return now
