"""The admin endpoint of a worker; that router and deliverer serve it is seen in tests/contract/test_operations.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import httpx
import pytest

from pipeline.delivery.attempts import Attempts
from pipeline.destination import Delivered, Misconfigured, Retry, Verdict
from pipeline.kafka.embedded.broker import free_port
from pipeline.telemetry.admin import readiness, serve_admin
from pipeline.telemetry.waiting import WAITING
from tests.guard import FakeGuard

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def nobody_waits() -> None:
    """The board is the process's: other tests leave connections that never went on."""
    for connection in list(WAITING.connections):
        WAITING.end(connection)


async def test_a_connection_that_waits_is_visible_while_it_waits_and_a_misconfigured_one_is_not_ready() -> None:
    runner = await serve_admin("deliver", f"127.0.0.1:{free_port()}", 0, lambda: readiness(WAITING))
    host, port = runner.addresses[0][:2]
    answers = iter([*[Retry("http_503")] * 3, Misconfigured("the destination answers 401"), Delivered()])
    told: list[tuple[int, str]] = []
    gauges: list[str] = []
    now = 0.0

    async def send(items: Sequence[str]) -> Verdict:
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            ready, metrics = await client.get("/readyz"), await client.get("/metrics")
        told.append((ready.status_code, ready.text))
        gauges.append(metrics.text)
        return next(answers)

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    try:
        await Attempts("crm", send, 1, 3600.0, lambda: now, sleep, lambda: 1.0).deliver(["a"], [[[0]]], FakeGuard())
        assert told == [
            *[(200, "ready\n")] * 3,  # so far it may be bad luck
            (200, "ready\ncrm: failing: http_503\n"),
            (503, "not ready\ncrm: misconfigured: the destination answers 401\n"),
        ]
        assert 'hitrouter_delivery_waiting{connection="crm",why="failing"} 1.0' in gauges[3]
        assert 'hitrouter_delivery_waiting{connection="crm",why="misconfigured"} 1.0' in gauges[4]
        assert readiness(WAITING) == (200, "ready\n")
    finally:
        await runner.cleanup()


async def test_workers_of_one_machine_take_the_next_free_ports(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hitrouter.admin")
    address = f"127.0.0.1:{free_port()}"
    runners = [await serve_admin(role, address, 0, lambda: (200, "ready\n")) for role in ("route", "deliver")]
    ports = {runner.addresses[0][1] for runner in runners}
    for runner in runners:
        await runner.cleanup()
    assert len(ports) == 2
    # A log without the role sends the operator to the router's /readyz, which knows nothing of connections.
    assert [line.split()[0] for line in caplog.messages] == ["route", "deliver"]
