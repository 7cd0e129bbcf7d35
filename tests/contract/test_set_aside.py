"""A hit that a firewall refuses, on a real Kafka: others are delivered, and it is set aside, retried and never lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from rich.console import Console

from pipeline.codec.ledger_entry import LedgerEntry, encode_ledger_entry
from pipeline.codec.set_aside import SetAsideHit
from pipeline.config.models import Config
from pipeline.console.ledger_table import print_ledger
from pipeline.delivery.app import Running, wanted_apps
from pipeline.delivery.set_aside_app import build_set_aside_app
from pipeline.development.fault_server import FaultServer, Rule
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.worker_health import WorkerHealth
from pipeline.operations.explain import explain
from pipeline.operations.ledger import Ledger, read_ledger
from pipeline.operations.read_topic import header_texts, read_topic
from pipeline.telemetry.health import Health
from pipeline.telemetry.waiting import WAITING
from tests.faults.delivering import start_fault_server
from tests.roles import dead, delete_below, hit, put, running

pytestmark = pytest.mark.anyio
MakeConfig = Callable[..., Config]
_LAP_SECONDS = 1.0


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made, stop = start_fault_server()
    yield made
    stop()


@asynccontextmanager
async def delivering(config: Config) -> AsyncIterator[None]:
    """Runs the apps of a deliver process in this process, with a lap of one second."""
    workers = WorkerHealth(Health("deliver", 0))
    running: Running = {}
    wanted = wanted_apps(config, 0, workers, running)
    apps = [build() for name, (_, build) in wanted.items() if name in config.connections]
    apps.append(build_set_aside_app(config, 0, workers, running, _LAP_SECONDS))
    await asyncio.gather(*(app.start() for app in apps))
    try:
        yield
    finally:
        await asyncio.gather(*(app.stop() for app in apps))
        for name in config.connections:
            WAITING.register(name)  # for other tests in this process


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true result of `condition`, which runs off the loop."""
    deadline = asyncio.get_running_loop().time() + 60
    while not (answer := await asyncio.to_thread(condition)):
        assert asyncio.get_running_loop().time() < deadline, f"no {what} within 60 s"
        await asyncio.sleep(0.1)
    return answer


def printed(ledger: Ledger) -> str:
    console = Console(file=StringIO(), width=200)
    print_ledger(console, ledger)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def explained(config: Config, hit_id: str) -> dict[str, tuple[str, str]]:
    """Return the state and details of each connection that `explain` shows."""
    (hit_trace,) = explain(config, hit_id)
    return {trace.connection: (trace.state, "\n".join(trace.details)) for trace in hit_trace.connection_traces}


def written_aside(config: Config) -> list[SetAsideHit]:
    records = read_topic(config.kafka, TopicNames(config.kafka.topic_prefix).set_aside)
    return [hit for record in records if (hit := SetAsideHit.read(record.headers())) is not None]  # type: ignore[arg-type]


async def test_good_hits_are_delivered_and_the_refused_one_is_retried_until_accepted_or_given_up(
    make_config: MakeConfig, tmp_path: Path, server: FaultServer
) -> None:
    server.replace([Rule(contains="OR 1=1", status=403, body="blocked by the firewall")])
    delivery = {"allow_private": True, "give_up_after": "2s"}
    config = make_config(
        {
            "crm": {
                "destination": "Webhook",
                "settings": {"url": f"{server.url}/crm"},
                "delivery": {"allow_private": True},
            },
            "ads": {"destination": "Webhook", "settings": {"url": f"{server.url}/ads"}, "delivery": delivery},
        }
    )
    ensure_topics(config)
    bad = hit("bad", event={"name": "E", "text": "' OR 1=1 --", "user": {"userId": "u"}})
    (tmp_path / "killed").mkdir()
    patches = f"pipeline.codec.set_aside:LAP_SECONDS={_LAP_SECONDS}"
    with running("route", config, tmp_path):
        with running("deliver", config, tmp_path / "killed", patches=patches):
            put(config, *(hit(f"good-{n}") for n in range(20)), bad, *(hit(f"good-{n}") for n in range(20, 40)))
            await until(lambda: len(server.taken) == 40, "forty hits")
            ledger = await until(lambda: _counted(config, 40), "the ledger")
            assert ledger.adds_up and ledger.pauses == {}
            sums = ledger.connections["crm"]
            assert (sums.routed, sums.delivered, sums.set_aside, sums.pending) == (41, 40, 1, 1)
            assert "crm: 1 hit set aside: the destination answers 403" in printed(ledger)
            assert "blocked by the firewall; next retry " in printed(ledger)
            state, details = explained(config, "bad")["crm"]
            assert state == "pending" and "set aside since " in details and "blocked by the firewall; tried " in details
            await until(lambda: any(one.asked >= 2 for one in written_aside(config)), "a second request")
        # That deliverer is killed; the next one gives up the hit of one connection.
        async with delivering(config):
            await until(lambda: len(dead(config)) == 1, "the dead letter")
            (letter,) = map(header_texts, dead(config))
            assert (letter["connection"], letter["reason"], letter["stage"]) == ("ads", "gave_up", "deliver")
            assert letter["origin-topic"].endswith("deliveries-ads") and "blocked by the firewall" in letter["message"]
            ledger = read_ledger(config)
            assert ledger.adds_up and ledger.connections["ads"].pending == 0 and ledger.connections["ads"].dead == 1
            assert ledger.connections["crm"].set_aside == 1 and ledger.reasons["ads", "dead", "gave_up"] == 1
            server.replace([])
            await until(lambda: read_ledger(config).connections["crm"].delivered == 41, "the hit after the repair")
    ledger = read_ledger(config)
    assert ledger.adds_up and ledger.set_aside == {} and ledger.connections["crm"].pending == 0
    states = explained(config, "bad")
    assert states["crm"][0] == "delivered" and states["ads"][0] == "dead"
    assert server.taken["bad"] == 1 and "set aside" not in printed(ledger)


def test_truncated_ledger_still_counts_hits_that_are_set_aside(make_config: MakeConfig) -> None:
    config = make_config({"crm": {"destination": "Webhook", "settings": {"url": "https://crm.example"}}})
    ensure_topics(config)
    names = TopicNames(config.kafka.topic_prefix)
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    aside = SetAsideHit("crm", "shop", names.deliveries("crm"), 0, 7, round(time.time() * 1000), 1, "http_403")
    for copy in (aside, replace(aside, offset=8), aside):  # the last one was set aside again while the ledger was read
        producer.produce(names.set_aside, hit("a"), b"u", 1, headers=copy.headers())
    producer.produce(names.ledger, encode_ledger_entry(LedgerEntry("route", names.hits_raw, 0, 0, 0, 0)), b"0", 0)
    assert producer.flush(30) == 0
    delete_below(config, names.ledger, {0: 1})
    ledger = read_ledger(config)
    sums = ledger.connections["crm"]
    assert (sums.pending, sums.set_aside, sums.earlier) == (2, 2, 2) and ledger.adds_up


def _counted(config: Config, delivered: int) -> Ledger | None:
    ledger = read_ledger(config)
    return ledger if all(sums.delivered == delivered for sums in ledger.connections.values()) else None
