"""Sends stop signals at moments spread over the start of a role, from its first instruction to its first batch and beyond.

After each: exit code 0, no traceback, `stopped` at the end of the log, no process left, and no member left in a consumer group.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.config.models import Config
from pipeline.delivery.set_aside_app import http_connections
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import ensure_topics
from pipeline.kafka.topics.declared import SET_ASIDE_MEMBER
from pipeline.process.stop import STOP_SIGNALS
from tests.processes import children_of, is_alive
from tests.roles import free_admin_listen, hit, put, written

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
_READY = {"intake": "ready: ", "kafka": "ready: "}
"""What a role logs when it has started; the others `partitions assigned: `, once for each of their groups."""
_START_SECONDS = 120.0
_STOP_SECONDS = 40.0
_LEFT_SECONDS = 15.0
"""A bit more than the session timeout, by which a role that ends at once leaves its group."""
_BEYOND = 1.15
"""Factor of the start time: the last moments are after the start, during the first batches."""


@dataclass(frozen=True, slots=True)
class Life:
    """How to start a role: the `arguments` of the command, its folder and groups, and how often it logs that it is ready."""

    role: str
    arguments: Sequence[str]
    folder: Path
    groups: Sequence[str] = ()
    ready_times: int = 1
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Log file of the process."""
        return self.folder / f"{self.role}.log"


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the stop signals of children started within the block: the signals stay pending until the child handles them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_lives(config: Config, folder: Path) -> list[Life]:
    """Return the roles that use a running Kafka."""
    file = str(written(config, folder))
    prefix = config.kafka.topic_prefix
    sinks = [name for name, connection in config.connections.items() if connection.destination != "Kafka"]
    deliver = [*(f"deliver-{name}" for name in sinks), *([SET_ASIDE_MEMBER] if http_connections(config) else [])]
    groups = {"intake": [], "route": [f"{prefix}route"], "deliver": [f"{prefix}{name}" for name in deliver]}
    return [Life(role, [role, "-c", file], folder, of, max(1, len(of))) for role, of in groups.items()]


def whole_lives(folder: Path) -> list[Life]:
    """Return the roles that start their own Kafka, with the connections of the example."""
    settings = yaml.safe_load((EXAMPLES / "hitrouter.yaml").read_text())
    for section in ("kafka", "intake", "admin"):
        settings[section]["listen"] = free_admin_listen() if section == "admin" else f"127.0.0.1:{free_port()}"
    file = folder / "example.yaml"
    file.write_text(yaml.safe_dump(settings))
    environment = {"SHOP_TOKEN": "a", "BLOG_TOKEN": "b", "WEBHOOK_URL": "http://127.0.0.1:9/x"}
    return [
        Life(role, [role, "-c", str(file)], folder, (), times, environment)
        for role, times in (("kafka", 1), ("up", 5), ("demo", 5))
    ]


def start(life: Life) -> subprocess.Popen[bytes]:
    """Start the role with a new log."""
    with life.log.open("wb") as log, signals_blocked():
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *life.arguments],
            cwd=life.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **life.environment},
            start_new_session=True,
        )


def start_seconds(life: Life) -> float:
    """Measure how long the role takes until it is ready. Raises AssertionError if it does not become ready."""
    process = start(life)
    began = time.monotonic()
    try:
        while (
            life.log.read_text(errors="replace").count(_READY.get(life.role, "partitions assigned: "))
            < life.ready_times
        ):
            assert process.poll() is None, life.log.read_text(errors="replace")
            assert time.monotonic() < began + _START_SECONDS, f"{life.role} is not ready after {_START_SECONDS:.0f} s"
            time.sleep(0.02)
        return time.monotonic() - began
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


def moments(seconds: float, count: int, draw: random.Random) -> list[float]:
    """Return `count` moments in seconds after the spawn: 0, and one in each equal part of the start."""
    part = seconds * _BEYOND / count
    return [0.0, *(part * (number + draw.random()) for number in range(1, count))]


def problems_of_stop(
    life: Life, after_seconds: float, number: signal.Signals, servers: str | None
) -> tuple[list[str], float]:
    """Stop the role by signal `number` after `after_seconds`. Return the problems, and how long the stop took."""
    process = start(life)
    time.sleep(after_seconds)
    below = children_of(process.pid)
    process.send_signal(number)
    began = time.monotonic()
    try:
        code: int | None = process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    took = time.monotonic() - began
    text = life.log.read_text(errors="replace")
    problems = []
    if code != 0:
        problems.append(f"exit code {code}")
    if "Traceback" in text:
        problems.append("traceback")
    if not text.rstrip().endswith("stopped"):
        problems.append("the log does not end with `stopped`")
    alive = [pid for pid in below if is_alive(pid)]
    if alive:
        problems.append(f"left behind: {alive}")
    if servers is not None and (members := members_after(servers, life.groups)):
        problems.append(f"members left in {members}")
    where = f"{life.role}: {number.name} {after_seconds:.2f} s after the spawn"
    return [f"{where}: {problem}\n{_tail(text)}" for problem in problems], took


def sweep(
    life: Life, count: int, seed: int, servers: str | None, told: Callable[[str], None] = lambda text: None
) -> list[str]:
    """Stop the role at `count` moments, with each signal in turn. Return the problems."""
    draw = random.Random(f"{seed}-{life.role}")
    seconds = start_seconds(life)
    told(f"{life.role} starts in {seconds:.1f} s")
    problems = []
    longest = 0.0
    for position, moment in enumerate(moments(seconds, count, draw)):
        found, took = problems_of_stop(life, moment, STOP_SIGNALS[position % len(STOP_SIGNALS)], servers)
        longest = max(longest, took)
        for problem in found:
            told(problem)
        problems += found
    told(f"{life.role}: {count} stops, longest {longest:.1f} s, {len(problems)} problems")
    return problems


def members_after(servers: str, groups: Sequence[str], seconds: float = _LEFT_SECONDS) -> list[str]:
    """Return the groups that still have members after `seconds`; returns earlier if none has."""
    if not groups:
        return []
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    deadline = time.monotonic() + seconds
    while True:
        left = [group for group in groups if _has_members(admin, group)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _has_members(admin: AdminClient, group: str) -> bool:
    try:
        described = admin.describe_consumer_groups([group], request_timeout=10)[group].result()
    except KafkaException:  # a group without any member so far
        return False
    return bool(described.members)


def _tail(text: str) -> str:
    return "\n".join(f"    {line[:300]}" for line in text.splitlines()[-15:])


def prove_stops(count: int, seed: int) -> bool:
    """Return whether every role stops cleanly at `count` moments."""
    began = time.monotonic()
    problems: list[str] = []
    told = lambda text: print(f"  {text}", file=sys.stderr, flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory(prefix="hitrouter-prove-") as name:
        folder = Path(name)
        broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
        broker.start()
        try:
            config = stop_config(broker.bootstrap_servers, folder)
            for life in worker_lives(config, folder):
                problems += sweep(life, count, seed, broker.bootstrap_servers, told)
        finally:
            broker.stop()
        for life in whole_lives(folder):
            problems += sweep(life, count, seed, None, told)
    print(f"stops (seed {seed}, {time.monotonic() - began:.0f} s): {count} moments of each of six roles")
    print("\n".join(f"  {problem}" for problem in problems) or "  kept", flush=True)
    return not problems


def stop_config(servers: str, folder: Path, prefix: str = "") -> Config:
    """Return a configuration with three file sinks and three unreachable destinations, with hits pending for all of them."""
    files = {
        f"f{number}": {"destination": "Files", "settings": {"path": str(folder / f"f{number}")}} for number in range(3)
    }
    away = {"settings": {"url": f"http://127.0.0.1:{free_port()}/"}, "delivery": {"allow_private": True}}
    config = Config.model_validate(
        {
            "kafka": {"bootstrap_servers": servers, "topic_prefix": prefix},
            "intake": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": free_admin_listen()},
            "projects": {"shop": {"tokens": ["shop-token"]}},
            "connections": files | {f"h{number}": {"destination": "Webhook", **away} for number in range(3)},
        }
    )
    ensure_topics(config)
    put(config, *[hit(str(number)) for number in range(500)])
    return config
