"""Webhooks during rebalances: a clean rebalance or a stop repeats nothing, a suspended worker repeats requests in flight."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from pipeline.codec.hit import decode_hit
from pipeline.codec.routed_hit import encode_routed_hit
from pipeline.config.models import Config
from pipeline.development.fault_server import FaultServer, Rule
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transport.settings import SESSION_TIMEOUT_MS
from tests.faults.delivering import start_fault_server
from tests.roles import Role, hit, wait_until

_IN_FLIGHT = 8
_HITS = 900


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Responds after 0.3 s, so that requests are always in flight."""
    made, stop = start_fault_server()
    made.replace([Rule(delay=0.3)])  # type: ignore[call-arg]
    yield made
    stop()


@pytest.fixture
def config(make_config: Callable[..., Config], server: FaultServer) -> Config:
    """One webhook with pending hits."""
    webhook = {
        "destination": "Webhook",
        "settings": {"url": server.url},
        "delivery": {"allow_private": True, "max_in_flight": _IN_FLIGHT},
    }
    made = make_config({"hook": webhook})
    ensure_topics(made)
    producer = Producer({"bootstrap.servers": made.kafka.servers})
    at = "2026-11-27T10:15:30.123Z"
    for number in range(_HITS):
        name = f"hit-{number}"
        decoded = decode_hit(hit(name, event={"name": "E", "user": {"userId": name}}))
        value = encode_routed_hit(decoded, name, "shop", at, at, decoded.context)
        producer.produce(TopicNames(made.kafka.topic_prefix).deliveries("hook"), value, name)
    assert producer.flush(30) == 0
    return made


@pytest.fixture
def deliverer(config: Config, tmp_path: Path) -> Iterator[Callable[[int], Role]]:
    """Starts a deliverer on a slot, and returns once it has partitions."""
    started: list[Role] = []

    def start(slot: int) -> Role:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Role("deliver", config, folder, slot))
        started[-1].wait_for("partitions assigned: ", 2)  # of the connection, and of hits that are set aside
        return started[-1]

    yield start
    for role in started:
        role.process.kill()
        role.process.wait()


def repeats(server: FaultServer) -> int:
    return server.seen.total() - len(server.seen)


def wait_for_hits(server: FaultServer, count: int) -> None:
    wait_until(lambda: len(server.taken) >= count, f"{count} hits at the webhook")


def test_clean_rebalance_repeats_no_request(server: FaultServer, deliverer: Callable[[int], Role]) -> None:
    deliverer(0)
    wait_for_hits(server, 40)
    second = deliverer(1)
    wait_for_hits(server, len(server.taken) + 60)
    assert second.stop() == 0
    wait_for_hits(server, _HITS)
    assert repeats(server) == 0


def test_stop_repeats_no_request(server: FaultServer, deliverer: Callable[[int], Role]) -> None:
    for _ in range(3):
        role = deliverer(0)
        wait_for_hits(server, len(server.taken) + 50)
        assert role.stop() == 0
    deliverer(0)
    wait_for_hits(server, _HITS)
    assert repeats(server) == 0


def test_deliverer_suspended_past_its_session_repeats_at_most_requests_in_flight(
    server: FaultServer, deliverer: Callable[[int], Role]
) -> None:
    suspended = deliverer(0)
    wait_for_hits(server, 20)
    deliverer(1)
    wait_for_hits(server, len(server.taken) + 40)
    suspended.process.send_signal(signal.SIGSTOP)
    time.sleep(SESSION_TIMEOUT_MS / 1000 * 1.5)  # until the session expires
    suspended.process.send_signal(signal.SIGCONT)
    wait_for_hits(server, _HITS)
    assert repeats(server) <= _IN_FLIGHT
    assert suspended.process.poll() is None
