"""Delivery: the deliverer beside a plain loop that does the same with the sink's own client, hit by hit of the same backlog."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from bench.measure import Sample, measure
from bench.workload import PARTITIONS, configure, hit
from pipeline.codec.hit import decode_hit
from pipeline.codec.routed_hit import encode_routed_hit
from pipeline.config import Config
from pipeline.kafka.topics import TopicNames
from tests.clickhouse import PASSWORD, running_clickhouse
from tests.postgres import new_database, running_postgres

SINKS = ("webhook", "segment, 100 a request", "postgresql", "clickhouse", "parquet")
_HITS = {
    "webhook": 20_000,
    "segment, 100 a request": 100_000,
    "postgresql": 100_000,
    "clickhouse": 100_000,
    "parquet": 200_000,
}


def _connection(sink: str, url: str, dsn: str, clickhouse: str, folder: Path) -> dict[str, Any]:
    private = {"delivery": {"allow_private": True}}
    return {
        "webhook": {"destination": "Webhook", "settings": {"url": url}, **private},
        "segment, 100 a request": {
            "destination": "Segment",
            "settings": {"write_key": "k", "endpoint": url},
            "delivery": {"allow_private": True, "rate": "1000000/s"},  # Segment's own is 1,000
        },
        "postgresql": {"destination": "PostgreSQL", "settings": {"dsn": dsn}},
        "clickhouse": {
            "destination": "ClickHouse",
            "settings": {"url": clickhouse, "password": PASSWORD, "table": _table(folder)},
        },
        "parquet": {"destination": "Files", "settings": {"path": str(folder / "out"), "format": "parquet"}},
    }[sink]


def _table(folder: Path) -> str:
    return f"hits_{folder.name.replace('-', '_')}"


def preload(config: Config, hits: int) -> None:
    """Put routed hits of 1 KB into the connection's topic."""
    topic = TopicNames(config.kafka.topic_prefix).deliveries("one")
    producer = Producer(
        {"bootstrap.servers": config.kafka.servers, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000}
    )
    time = "2026-11-24T10:15:30.123Z"
    for number in range(hits):
        _, body = hit(number * 10)
        decoded = decode_hit(body)
        value = encode_routed_hit(decoded, f"hit-{number}", "shop", time, time, decoded.context)
        while True:
            try:
                producer.produce(topic, value, decoded.identity.encode())
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()


def _progress(servers: str, group: str, topic: str) -> Callable[[], int]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": group, "log_level": 0})
    asked = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]

    def progress() -> int:
        try:
            return sum(max(0, found.offset) for found in consumer.committed(asked, timeout=30))
        except KafkaException:
            return 0

    return progress


def measure_deliver(console: Console, servers: str, folder: Path, rounds: int) -> None:
    """Interleaved rounds; prints medians, and the median of our ratios to the plain loop."""
    found: dict[tuple[str, str], list[Sample]] = {}
    sink_server = subprocess.Popen(
        [sys.executable, "-m", "bench.sink_server"], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    assert sink_server.stdout is not None
    url = sink_server.stdout.readline().strip()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hitrouter-bench-") as name,
            running_postgres(Path(name)) as postgres,
            running_clickhouse(Path(name)) as clickhouse,
        ):
            for number in range(rounds):
                for sink in SINKS:
                    for who in ("ours", "plain loop"):
                        label = f"{sink.partition(',')[0]}-{who.partition(' ')[0]}-{number}"
                        place = folder / label
                        place.mkdir()
                        dsn = new_database(postgres, label)
                        connection = _connection(sink, url, dsn, clickhouse, place)
                        file, config = configure(
                            place, servers, f"{label}-", connections={"one": connection}, enrich={}
                        )
                        preload(config, _HITS[sink])
                        names = TopicNames(config.kafka.topic_prefix)
                        group = f"{names.prefix}deliver-one"
                        command = [sys.executable, "-m", "pipeline", "deliver", "-c", str(file)]
                        if who == "plain loop":
                            target = {
                                "postgresql": dsn,
                                "clickhouse": f"{clickhouse}/{_table(place)}",
                                "parquet": str(place / "out"),
                            }.get(sink, url)
                            command = [
                                *(sys.executable, "-m", "bench.plain_deliver", sink.partition(",")[0]),
                                *(servers, names.deliveries("one"), group, target),
                            ]
                        progress = _progress(servers, group, names.deliveries("one"))
                        sample = measure(command, progress, _HITS[sink], place / "log")
                        found.setdefault((sink, who), []).append(sample)
                        console.print(
                            f"round {number + 1}: {sink}, {who} {sample.cpu_us:.1f} us, {sample.per_second:.0f}/s"
                        )
    finally:
        sink_server.kill()
        sink_server.wait()
    table = Table("sink", "ours, CPU-us per hit", "plain loop", "ours / it, by round", "goal")
    for sink in SINKS:
        ours, plain = ([sample.cpu_us for sample in found[sink, who]] for who in ("ours", "plain loop"))
        # Within a round, since what else the machine does differs more from round to round than the contestants do.
        ratio = statistics.median(our / it for our, it in zip(ours, plain, strict=True))
        table.add_row(
            sink, f"{statistics.median(ours):.1f}", f"{statistics.median(plain):.1f}", f"{ratio:.2f}", "at most 1.3"
        )
    console.print(table)
