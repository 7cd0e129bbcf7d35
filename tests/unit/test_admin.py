"""Tests of the admin endpoint of a worker. tests/e2e/test_readyz.py tests it in each role."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence

import httpx
import pytest

from pipeline.delivery.attempts import Attempts
from pipeline.destination import Delivered, Misconfigured, Retry, Verdict
from pipeline.errors import ConfigurationError
from pipeline.kafka.embedded.broker import free_port
from pipeline.telemetry.admin import admin_endpoint
from pipeline.telemetry.admin_port import claim_port
from pipeline.telemetry.health import Health
from pipeline.telemetry.readiness import State
from pipeline.telemetry.waiting import WAITING
from tests.guard import FakeGuard


@pytest.fixture(autouse=True)
def no_connection_waits() -> None:
    """Remove the waiting connections that other tests of this process left."""
    for connection in list(WAITING.connections):
        WAITING.end(connection)


@pytest.fixture
def health() -> Health:
    return Health("deliver", 0)


@pytest.fixture
def url(health: Health) -> Iterator[str]:
    with admin_endpoint(health, "127.0.0.1:0") as address:
        yield f"http://{address}"


def test_endpoint_responds_from_the_start_and_is_ready_once_the_role_runs(health: Health, url: str) -> None:
    early = httpx.get(f"{url}/readyz")
    assert early.status_code == 503 and "\nprocess: starting: " in early.text
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert "hitrouter_ready 0.0" in httpx.get(f"{url}/metrics").text
    health.started()
    late = httpx.get(f"{url}/readyz")
    assert (late.status_code, late.text) == (200, "ready\n")
    assert "hitrouter_ready 1.0" in httpx.get(f"{url}/metrics").text


def test_hanging_loop_is_not_alive_and_stopping_process_is_not_ready(health: Health, url: str) -> None:
    health.started()
    health.liveness.beat(time.monotonic() - 100)
    hanging = httpx.get(f"{url}/healthz")
    assert hanging.status_code == 503
    assert hanging.text == "not alive\nevent loop: hangs: it has not turned for 100 s\n"
    health.stops_when(lambda: True)
    assert httpx.get(f"{url}/healthz").status_code == 200
    stopping = httpx.get(f"{url}/readyz")
    assert stopping.status_code == 503 and "process: stopping: " in stopping.text


@pytest.mark.anyio
async def test_waiting_connection_is_shown_and_does_not_block_readiness(health: Health, url: str) -> None:
    health.started()
    health.readiness.add(WAITING.conditions)
    answers = iter([*[Retry("http_503")] * 3, Misconfigured("the destination answers 401"), Delivered()])
    told: list[tuple[int, str]] = []
    gauges: list[str] = []
    now = 0.0

    async def send(items: Sequence[str]) -> Verdict:
        async with httpx.AsyncClient(base_url=url) as client:
            ready, metrics = await client.get("/readyz"), await client.get("/metrics")
        told.append((ready.status_code, ready.text.partition(" (for")[0]))
        gauges.append(metrics.text)
        return next(answers)

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    await Attempts("crm", send, 1, 3600.0, lambda: now, sleep, lambda: 1.0).deliver(["a"], [[[0]]], FakeGuard())
    assert told == [
        *[(200, "ready\n")] * 3,  # so far it may be bad luck
        (200, "ready\ncrm: failing: http_503"),
        (200, "ready\ncrm: misconfigured: the destination answers 401"),
    ]
    assert 'hitrouter_delivery_waiting{connection="crm",why="failing"} 1.0' in gauges[3]
    assert 'hitrouter_delivery_waiting{connection="crm",why="misconfigured"} 1.0' in gauges[4]
    assert health.readiness.verdict(time.monotonic()).text == "ready\n"


def test_error_names_the_worker_that_holds_the_port(health: Health) -> None:
    address = f"127.0.0.1:{free_port()}"
    with admin_endpoint(health, address), pytest.raises(ConfigurationError) as caught:
        claim_port(address, "route-1", wait_seconds=0.2)
    message = str(caught.value)
    assert f"route-1 cannot listen on {address}, its admin port: hitrouter's deliver-0, process " in message
    assert "--slot" in message and "`admin.listen`" in message


def test_error_says_how_to_find_another_program_that_holds_the_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.telemetry.admin_port._REQUEST_TIMEOUT_SECONDS", 0.2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"find it with `lsof -i :{port}`.*change `admin.listen`"):
            claim_port(f"127.0.0.1:{port}", "route-0", wait_seconds=0.2)


def test_worker_waits_for_its_previous_instance_to_end() -> None:
    previous = socket.socket()
    previous.bind(("127.0.0.1", 0))
    previous.listen()
    port = previous.getsockname()[1]
    waiting = threading.Event()

    def end() -> None:
        waiting.wait(10)
        previous.close()

    threading.Thread(target=end).start()
    timer = threading.Timer(0.3, waiting.set)
    timer.start()
    with claim_port(f"127.0.0.1:{port}", "route-0", wait_seconds=10) as claimed:
        assert claimed.getsockname()[1] == port
        assert waiting.is_set()


def test_address_of_another_machine_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1:8082: .*; change `admin.listen`"):
        claim_port("192.0.2.1:8082", "route-0")


def test_failed_health_check_is_repeated_and_changes_are_logged(
    health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipeline.telemetry.health")
    checks = 0
    done = threading.Event()

    def check() -> float:
        nonlocal checks
        checks += 1
        if checks == 2:
            health.started()
        if checks == 4:
            health.readiness.begin("kafka", State.AWAY, "no broker responds", time.monotonic())
        if checks == 6:
            done.set()
        return 0.01

    with health.watched(check):
        assert done.wait(10)
    changes = [message for message in caplog.messages if message.startswith("readiness changed")]
    assert [message.split(" conditions=")[0] for message in changes] == [
        "readiness changed: worker=deliver-0 state=not_ready",
        "readiness changed: worker=deliver-0 state=ready",
        "readiness changed: worker=deliver-0 state=not_ready",
    ]
    assert "kafka: away: no broker responds" in changes[2]
