"""Tests /readyz of each role, with a Kafka that is paused, killed and slow, and that each role has its own admin port."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from confluent_kafka import Producer

from pipeline.config.addresses import ROLES, admin_address
from pipeline.config.models import Config
from pipeline.development.fault_server import FaultServer, Rule
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames, ensure_topics
from tests.faults.delivering import start_fault_server
from tests.roles import DEADLINE_SECONDS, Role, free_admin_listen, hit, put, running, wait_until, written

MakeConfig = Callable[..., Config]
AWAY_SECONDS = 20.0
"""Kafka counts as away after two requests of two seconds; the rest is for a busy machine."""
_numbers = count(1)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A separate Kafka, because these tests inject faults."""
    made = EmbeddedBroker(f"127.0.0.1:{free_port()}", tmp_path_factory.mktemp("kafka"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made, stop = start_fault_server()
    yield made
    stop()


@pytest.fixture
def make(broker: EmbeddedBroker, tmp_path: Path) -> MakeConfig:
    def configured(connections: dict[str, Any] | None = None, **sections: Any) -> Config:
        return Config.model_validate(
            {
                "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": f"r{next(_numbers)}-"},
                "intake": {"listen": f"127.0.0.1:{free_port()}"},
                "admin": {"listen": free_admin_listen()},
                "projects": {"shop": {"tokens": ["shop-token"]}},
                "connections": connections or {},
                **sections,
            }
        )

    return configured


def files(folder: Path) -> dict[str, Any]:
    return {"destination": "Files", "settings": {"path": str(folder / "out"), "format": "jsonl"}}


def of_each_role(config: Config, folder: Path, stack: ExitStack) -> list[Role]:
    """Run intake, router and deliverer; they are ready in the block."""
    roles = [stack.enter_context(running(role, config, folder)) for role in ROLES]
    for role in roles:
        role.wait_until_ready()
    return roles


def expect(role: Role, status: int, text: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until /readyz of `role` has this status, and `text` in its body."""
    _expect(role, lambda found, body: found == status and text in body, f"{status} with {text!r}", seconds)


def expect_ready(role: Role) -> None:
    """Wait until `role` is ready without any condition."""
    _expect(role, lambda found, body: (found, body) == (200, "ready\n"), "200 without a condition", DEADLINE_SECONDS)


def _expect(role: Role, condition: Callable[[int, str], bool], what: str, seconds: float) -> None:
    answers = [(0, "")]

    def answered() -> bool:
        answers[:] = [role.ready()]
        return condition(*answers[0])

    try:
        wait_until(answered, what, seconds)
    except AssertionError as error:
        log = role.log.read_text(errors="replace")
        raise AssertionError(f"{error}; the last answer of {role.log.name}: {answers[0]}; its log:\n{log}") from None


def test_every_role_is_not_ready_while_kafka_is_away(make: MakeConfig, broker: EmbeddedBroker, tmp_path: Path) -> None:
    config = make({"archive": files(tmp_path), "second": files(tmp_path / "second")})
    spill = {"on_kafka_failure": "spill", "spill": {"folder": str(tmp_path / "spill")}}
    spilling = make(intake={"listen": f"127.0.0.1:{free_port()}", **spill})
    (tmp_path / "spilling").mkdir()
    with ExitStack() as stack:
        roles = of_each_role(config, tmp_path, stack)
        disk = stack.enter_context(running("intake", spilling, tmp_path / "spilling"))
        expect_ready(disk)
        for outage in ("paused", "killed"):
            if outage == "paused":
                assert broker.process is not None
                broker.process.send_signal(signal.SIGSTOP)
            else:
                broker.kill()
            try:
                for role in roles:
                    expect(role, 503, "\nkafka: away: ", AWAY_SECONDS)
                    assert "hitrouter_ready 0.0" in httpx.get(f"{role.admin}/metrics").text
                    assert httpx.get(f"{role.admin}/healthz").status_code == 200, "a restart would not bring Kafka back"
                expect(disk, 200, "kafka: spilling: ", AWAY_SECONDS)
            finally:
                if outage == "paused":
                    broker.process.send_signal(signal.SIGCONT)
                else:
                    broker.start()
            for role in [*roles, disk]:
                expect_ready(role)


def test_bad_edit_is_shown_until_it_is_corrected(make: MakeConfig, tmp_path: Path) -> None:
    config = make({"archive": files(tmp_path)})
    with ExitStack() as stack:
        roles = of_each_role(config, tmp_path, stack)
        file = written(config, tmp_path)
        good = file.read_text()
        file.write_text(yaml.safe_dump({**yaml.safe_load(good), "conections": {}}))
        refused = "conections: unknown key; did you mean 'connections'?"
        for role in roles:
            expect(role, 503, refused)
            assert "\nconfiguration: refused: " in role.ready()[1]
        file.write_text(good)
        for role in roles:
            role.wait_until_ready()


def test_misconfigured_connection_is_shown_and_the_deliverer_stays_ready(
    make: MakeConfig, tmp_path: Path, server: FaultServer
) -> None:
    server.replace([Rule(status=401)])
    crm = {"destination": "Webhook", "settings": {"url": server.url}}
    config = make({"crm": {**crm, "delivery": {"allow_private": True, "longest_backoff": "1s"}}})
    with running("route", config, tmp_path), running("deliver", config, tmp_path) as deliver:
        put(config, *(hit(str(number)) for number in range(12)))  # the first one is set aside, since it may be at fault
        misconfigured = "\ncrm: misconfigured: the destination answers 401"
        expect(deliver, 200, misconfigured)
        server.replace([])
        expect_ready(deliver)


def test_router_is_not_ready_while_it_rebuilds_its_seen_store(
    make: MakeConfig, broker: EmbeddedBroker, tmp_path: Path
) -> None:
    config = make()
    ensure_topics(config)
    # A rebuild waits for the transactions that were open when it began.
    writer = Producer({"bootstrap.servers": broker.bootstrap_servers, "transactional.id": "holds-up-a-rebuild"})
    writer.init_transactions(30)
    writer.begin_transaction()
    writer.produce(TopicNames(config.kafka.topic_prefix).seen_hits, b"", partition=0)
    writer.flush(30)
    role = Role("route", config, tmp_path)
    try:
        expect(role, 503, "-hits-raw: rebuilding: ")
        writer.abort_transaction(30)
        role.wait_until_ready()
    finally:
        role.kill()


def test_worker_without_partitions_and_deliverer_without_connections_are_ready(
    make: MakeConfig, tmp_path: Path
) -> None:
    config = make({"archive": {**files(tmp_path), "partitions": 1}})
    nothing = make()
    (tmp_path / "nothing").mkdir()
    ensure_topics(nothing)
    idle = Role("deliver", nothing, tmp_path / "nothing")
    try:
        with running("deliver", config, tmp_path) as first, running("deliver", config, tmp_path, slot=1) as second:
            first.wait_until_ready()
            second.wait_until_ready()
            bodies = [role.ready()[1] for role in (first, second)]
            assert sorted(["archive: idle: " in body for body in bodies]) == [False, True], bodies
        expect_ready(idle)
    finally:
        idle.kill()


def test_every_slot_of_every_role_has_its_own_admin_port(make: MakeConfig, tmp_path: Path) -> None:
    """Earlier, the second intake could not start, because a router used the port next to that of the first."""
    config = make({"archive": files(tmp_path)})
    with ExitStack() as stack:
        started = [
            stack.enter_context(running(role, config, tmp_path, slot))
            for role, slot in (("route", 0), ("intake", 0), ("intake", 1), ("deliver", 0), ("route", 1))
        ]
        for role in started:
            role.wait_until_ready()
        assert len({role.admin for role in started}) == len(started)
        held = {httpx.get(f"{role.admin}/healthz").headers["x-hitrouter-worker"].split(",")[0] for role in started}
        assert held == {"route-0", "intake-0", "intake-1", "deliver-0", "route-1"}


@pytest.mark.parametrize("role", ROLES)
def test_role_refuses_to_start_if_its_admin_port_is_in_use(role: str, make: MakeConfig, tmp_path: Path) -> None:
    config = make({"archive": files(tmp_path)})
    address = admin_address(config.admin.listen, role, 0)
    host, _, port = address.rpartition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        command = [sys.executable, "-m", "pipeline", role, "-c", str(written(config, tmp_path))]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert f"{role}-0 cannot listen on {address}, its admin port" in ended.stderr
    assert "change `admin.listen`" in ended.stderr and "Traceback" not in ended.stderr


def test_stopping_worker_is_not_ready_until_its_end(make: MakeConfig, broker: EmbeddedBroker, tmp_path: Path) -> None:
    config = make({"archive": files(tmp_path)})
    with ExitStack() as stack:
        roles = of_each_role(config, tmp_path, stack)
        assert broker.process is not None
        broker.process.send_signal(signal.SIGSTOP)  # leaving a group takes a moment then
        try:
            for role in roles:
                role.process.terminate()
            seen = {role.log.name: set[str]() for role in roles}

            def ended() -> bool:
                for role in roles:
                    status, body = role.ready()
                    assert status != 200, body
                    seen[role.log.name].add(body)
                return all(role.process.poll() is not None for role in roles)

            wait_until(ended, "the end of all", 40)
        finally:
            broker.process.send_signal(signal.SIGCONT)
    assert any("process: stopping: " in body for body in seen["intake-0.log"] | seen["route-0.log"]), seen
