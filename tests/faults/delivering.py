"""Kills the deliverer and checks the content of its sinks.

Tables and files must hold each hit exactly once. A webhook must get each hit; a kill may cause at most `max_in_flight` repeats, with
the same id. The router is not killed, so that only the deliverer is tested.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq

from pipeline.config.models import Config
from pipeline.destination import Files
from pipeline.development.fault_server import FaultServer
from pipeline.kafka.topics import TopicNames
from pipeline.operations.ledger import read_ledger
from pipeline.registry import read_settings
from pipeline.sinks.folders import open_folder
from tests.bigquery import FakeBigQuery
from tests.clickhouse import PASSWORD, ask_clickhouse
from tests.faults.dump import wait_until_routed
from tests.faults.workers import route_and_deliver
from tests.roles import hit, put

MAX_IN_FLIGHT = 8
_ARRIVE_SECONDS = 120.0
_BATCH = 100


@dataclass(slots=True)
class DeliverReport:
    """Result of a run. `problems` is empty if every sink is correct; `repeats` counts repeated requests."""

    hits: int
    kills: int
    kills_at_work: int
    repeats: int
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Backends:
    """The receivers of the connections; `bucket` is its address and options."""

    server: FaultServer
    dsn: str
    clickhouse: str
    bucket: tuple[str, dict[str, str]]
    bigquery: FakeBigQuery


def connections(backends: Backends, folder: Path) -> dict[str, Any]:
    """Return a connection for each kind of sink; for files, one with a folder and one with a bucket."""
    address, options = backends.bucket
    return {
        "hook": {
            "destination": "Webhook",
            "settings": {"url": backends.server.url},
            "delivery": {"max_in_flight": MAX_IN_FLIGHT, "allow_private": True},
        },
        "table": {"destination": "PostgreSQL", "settings": {"dsn": backends.dsn}},
        "columns": {"destination": "ClickHouse", "settings": {"url": backends.clickhouse, "password": PASSWORD}},
        "merged": {"destination": "Google BigQuery", "settings": backends.bigquery.settings},
        "parquet": {"destination": "Files", "settings": {"path": str(folder / "parquet"), "format": "parquet"}},
        "lines": {"destination": "Files", "settings": {"path": address, "format": "jsonl", **options}},
    }


def run_deliver_kills(
    config: Config,
    backends: Backends,
    folder: Path,
    kills: int,
    rate: int,
    seed: int,
    told: Callable[[str], None] = lambda text: None,
) -> DeliverReport:
    """Send `rate` hits per second, kill the deliverer `kills` times while it delivers, then read the sinks."""
    draw, server, bigquery = random.Random(seed), backends.server, backends.bigquery
    stop = threading.Event()
    sent: list[str] = []

    def send() -> None:
        while not stop.is_set():
            began = time.monotonic()
            names = [f"hit-{len(sent) + n}" for n in range(_BATCH)]
            put(config, *(hit(name, event={"name": "E", "user": {"userId": name}}) for name in names))
            sent.extend(names)
            stop.wait(max(0.0, _BATCH / rate - (time.monotonic() - began)))

    sender = threading.Thread(target=send, daemon=True)
    at_work = 0
    with route_and_deliver(config, folder) as (_, deliver):
        try:
            sender.start()
            for number in range(kills):
                before = len(server.seen)
                deadline = time.monotonic() + _ARRIVE_SECONDS
                while len(server.seen) == before and time.monotonic() < deadline:
                    time.sleep(0.05)
                # BigQuery stores rows and does not answer: each kill leaves rows that were never confirmed.
                bigquery.gate.clear()
                stored = bigquery.stored
                while bigquery.stored == stored and time.monotonic() < deadline:
                    time.sleep(0.05)
                time.sleep(draw.uniform(0.2, 2.0))
                at_work += len(server.seen) > before and bigquery.stored > stored
                deliver.kill()
                bigquery.gate.set()
                told(f"{number + 1}/{kills} deliver-kill: {len(server.taken)} hits have arrived")
            stop.set()
            sender.join()
            expected = Counter(sent)
            report = DeliverReport(len(sent), kills, at_work, 0)
            wait_until_routed(config, _ARRIVE_SECONDS)
            # A backlog can be long: wait as long as it shrinks.
            deadline, before = time.monotonic() + _ARRIVE_SECONDS, -1
            while (pending := _pending(config).total()) and time.monotonic() < deadline:
                if pending != before:
                    deadline, before = time.monotonic() + _ARRIVE_SECONDS, pending
                    told(f"{pending} deliveries are pending")
                time.sleep(2)
            report.problems = _problems(config, backends, expected)
            report.repeats = server.seen.total() - len(server.seen)
            if report.repeats > kills * MAX_IN_FLIGHT:
                report.problems.append(f"hook: {report.repeats} repeats after {kills} kills")
            if at_work < kills:
                report.problems.append(f"inconclusive: only {at_work} of {kills} kills hit a deliverer at work")
            return report
        finally:
            stop.set()
            bigquery.gate.set()


def _problems(config: Config, backends: Backends, expected: Counter[str]) -> list[str]:
    found = {
        "table": _table(backends.dsn),
        "columns": _columns(backends.clickhouse),
        "merged": Counter(row["hit_id"] for table in backends.bigquery.tables.values() for row in table.rows),
        "parquet": Counter(
            name for part in _files(config, "parquet") for name in pq.read_table(io.BytesIO(part))["hitId"].to_pylist()
        ),
        "lines": Counter(json.loads(line)["hitId"] for part in _files(config, "lines") for line in part.splitlines()),
        "hook": Counter(dict.fromkeys(backends.server.taken, 1)),
    }
    problems = []
    for name, holds in found.items():
        missing, doubled = expected - holds, holds - expected
        if missing or doubled:
            problems.append(f"{name}: {missing.total()} missing, {doubled.total()} too many")
    ledger, pending = read_ledger(config), _pending(config)
    if pending or not ledger.adds_up:
        problems.append(f"ledger: pending {dict(pending)}, {ledger.problems}")
    return problems


def _pending(config: Config) -> Counter[str]:
    return Counter({name: sums.pending for name, sums in read_ledger(config).connections.items() if sums.pending})


def _files(config: Config, connection: str) -> Iterator[bytes]:
    destination, settings = read_settings(config.connections[connection])
    assert isinstance(destination.sink, Files)
    folder = open_folder(destination.sink.folder(settings), destination.sink.options(settings))
    return map(folder.read, folder.names(TopicNames(config.kafka.topic_prefix).deliveries(connection)))


def _table(dsn: str) -> Counter[str]:
    with psycopg.connect(dsn) as connection:
        if connection.execute("SELECT to_regclass('hits')").fetchone() == (None,):
            return Counter()
        return Counter(dict(connection.execute("SELECT hit_id, count(*) FROM hits GROUP BY 1").fetchall()))


def _columns(clickhouse: str) -> Counter[str]:
    if ask_clickhouse(clickhouse, "EXISTS hits") == [["0"]]:
        return Counter()
    rows = ask_clickhouse(clickhouse, "SELECT hit_id, count() FROM hits GROUP BY 1")
    return Counter({name: int(count) for name, count in rows})


def start_fault_server(made: FaultServer | None = None) -> tuple[FaultServer, Callable[[], None]]:
    """Start a fault server in its own thread and event loop. Return it and a function that stops it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    server = made or FaultServer()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)

    def stop() -> None:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)

    return server, stop
