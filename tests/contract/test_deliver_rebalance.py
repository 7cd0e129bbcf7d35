"""Webhooks while partitions move: a clean rebalance and a stop repeat nothing, a worker that slept repeats what was in flight."""

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
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.transport.settings import SESSION_TIMEOUT_MS
from pipeline.operations.fault_server import FaultServer, Rule
from tests.faults.delivering import start_fault_server
from tests.roles import Role, hit, wait_until

_IN_FLIGHT = 8
_HITS = 900


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Answers after a moment, so that requests are in flight at any time."""
    made, stop = start_fault_server()
    made.replace([Rule(delay=0.3)])  # type: ignore[call-arg]
    yield made
    stop()


@pytest.fixture
def config(make_config: Callable[..., Config], server: FaultServer) -> Config:
    """One webhook with hits that wait for it."""
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
    """Starts a deliverer on a slot, and returns when it has partitions."""
    started: list[Role] = []

    def start(slot: int) -> Role:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Role("deliver", config, folder, slot))
        started[-1].wait_for("partitions assigned: ", 2)  # hook's, and that of hits that are set aside
        return started[-1]

    yield start
    for role in started:
        role.process.kill()
        role.process.wait()


def repeats(server: FaultServer) -> int:
    return server.seen.total() - len(server.seen)


def wait_for_hits(server: FaultServer, count: int) -> None:
    wait_until(lambda: len(server.taken) >= count, f"{count} hits at the webhook")


def test_a_clean_rebalance_repeats_no_request(server: FaultServer, deliverer: Callable[[int], Role]) -> None:
    deliverer(0)
    wait_for_hits(server, 40)
    second = deliverer(1)
    wait_for_hits(server, len(server.taken) + 60)
    assert second.stop() == 0
    wait_for_hits(server, _HITS)
    assert repeats(server) == 0


def test_a_stop_repeats_no_request(server: FaultServer, deliverer: Callable[[int], Role]) -> None:
    for _ in range(3):
        role = deliverer(0)
        wait_for_hits(server, len(server.taken) + 50)
        assert role.stop() == 0
    deliverer(0)
    wait_for_hits(server, _HITS)
    assert repeats(server) == 0


def test_a_deliverer_that_slept_past_its_session_repeats_what_was_in_flight_at_most(
    server: FaultServer, deliverer: Callable[[int], Role]
) -> None:
    sleeper = deliverer(0)
    wait_for_hits(server, 20)
    deliverer(1)
    wait_for_hits(server, len(server.taken) + 40)
    sleeper.process.send_signal(signal.SIGSTOP)
    time.sleep(SESSION_TIMEOUT_MS / 1000 * 1.5)  # the session ends by time alone
    sleeper.process.send_signal(signal.SIGCONT)
    wait_for_hits(server, _HITS)
    assert repeats(server) <= _IN_FLIGHT
    assert sleeper.process.poll() is None
