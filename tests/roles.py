"""Roles as processes, and what their topics hold, for tests on the real Kafka."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.config.addresses import admin_address
from pipeline.config.models import Config
from pipeline.kafka.embedded.broker import free_ports
from pipeline.kafka.patience import in_slices
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.operations.read_topic import read_topic

DEADLINE_SECONDS = 60.0


def wait_until(
    condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS, every_seconds: float = 0.1
) -> Any:
    """The first true answer of `condition`; fails with `what` after `seconds`.

    A condition that asks Kafka costs as much CPU as a worker: half of the time is left to the workers.
    """
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:.0f} s"
        time.sleep(max(every_seconds, time.monotonic() - began))


def written(config: Config, folder: Path, name: str = "hitrouter.yaml") -> Path:
    """The configuration as a file, such as an operator writes."""
    file = folder / name
    file.write_text(
        yaml.safe_dump(config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True))
    )
    return file


def free_admin_listen() -> str:
    """An `admin.listen` whose next ports, those of the first four slots of each role, are free, too."""
    return f"127.0.0.1:{free_ports(12)}"


class Role:
    """A running role; `admin` is the URL of its admin endpoint. `patches` are those of tests/patched.py."""

    def __init__(
        self, role: str, config: Config, folder: Path, slot: int = 0, patches: str = "", **environment: str
    ) -> None:
        file = written(config, folder)
        self.log = folder / f"{role}-{slot}.log"
        self.admin = f"http://{admin_address(config.admin.listen, role, slot)}"
        module = ["tests.patched", patches] if patches else ["pipeline"]
        command = [sys.executable, "-m", *module, role, "-c", str(file), "--slot", str(slot)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
            )

    def logged(self, text: str, times: int = 1) -> bool:
        """Has it said so?"""
        assert self.process.poll() is None, self.log.read_text()
        return self.log.read_text(errors="replace").count(text) >= times

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until it has said so."""
        wait_until(lambda: self.logged(text, times), f"{text!r} in {self.log.name}")

    def ready(self) -> tuple[int, str]:
        """The status and body of its /readyz; (0, "") while nothing answers."""
        try:
            answer = httpx.get(f"{self.admin}/readyz", timeout=10)
        except httpx.TransportError:
            return 0, ""
        return answer.status_code, answer.text

    def wait_until_ready(self) -> None:
        """Until /readyz is 200."""
        wait_until(lambda: self.ready()[0] == 200, f"readiness of {self.log.name}")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(15)

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(role: str, config: Config, folder: Path, slot: int = 0, patches: str = "") -> Iterator[Role]:
    """A role that is assigned or listening, killed at the end if the test has not stopped it."""
    ensure_topics(config)
    made = Role(role, config, folder, slot, patches)
    try:
        made.wait_for("ready: url=http" if role == "intake" else "partitions assigned: ")
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def listens(config: Config) -> bool:
    """Is the intake's port open?"""
    host, _, port = config.intake.listen.rpartition(":")
    with socket.socket() as asking:
        return asking.connect_ex((host, int(port))) == 0


def put(config: Config, *values: bytes, project: str | None = "shop", key: bytes | None = None) -> None:
    """Write records to hits-raw as a front end does."""
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    headers = [("project", project.encode())] if project is not None else []
    for value in values:
        producer.produce(TopicNames(config.kafka.topic_prefix).hits_raw, value, key, headers=headers)
    assert producer.flush(30) == 0


def delete_below(config: Config, topic: str, below: dict[int, int]) -> None:
    """Do what retention does: raise the low watermark of each partition to the offset."""
    asked = [TopicPartition(topic, partition, offset) for partition, offset in below.items()]

    def delete(timeout_seconds: float) -> None:
        # A new client each time: one that has read its metadata before a change of leaders may keep the old leader.
        admin = AdminClient({"bootstrap.servers": config.kafka.servers})
        for future in admin.delete_records(asked).values():
            future.result(timeout_seconds)

    in_slices(delete, 30)


def hit(hit_id: str | None, **more: Any) -> bytes:
    """A small valid hit."""
    body = {"event": {"name": "E", "user": {"userId": "u"}}, **more}
    return json.dumps(body if hit_id is None else {"hitId": hit_id, **body}).encode()


def delivered(config: Config, connection: str) -> list[dict[str, Any]]:
    """The routed hits of one connection, committed ones."""
    topic = TopicNames(config.kafka.topic_prefix).deliveries(connection)
    return [json.loads(record.value() or b"") for record in read_topic(config.kafka, topic)]


def ids(config: Config, connection: str) -> list[str]:
    """Their hitIds, sorted."""
    return sorted(routed["hitId"] for routed in delivered(config, connection))


def dead(config: Config) -> list[Message]:
    """The dead letters."""
    return list(read_topic(config.kafka, TopicNames(config.kafka.topic_prefix).dead_letters))
