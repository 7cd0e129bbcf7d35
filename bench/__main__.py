"""`make bench`: interleaved rounds of every contestant on one real Kafka, medians, and the goals beside them."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition
from rich.console import Console
from rich.table import Table

from bench import http, start_up
from bench.deliver import measure_deliver
from bench.latency import measure_latency
from bench.measure import Sample, measure
from bench.slow_clients import measure_slow_clients, told
from bench.stages import measure_stages
from bench.stores import measure_rebuild, measure_stores
from bench.workload import COMPACT, OUTPUTS, PARTITIONS, SPACED, configure, preload
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames

_HERE = Path(__file__).parent
_ALL = (
    "ours",
    "plain loop",
    "textbook",
    "quix",
    "latency",
    "stores",
    "stages",
    "deliver",
    "http",
    "slow clients",
    "start-up",
)
_FEWER = {"textbook": 4}
"""Slow contestants get a smaller backlog; what counts is the cost per hit."""


def quix_python() -> str:
    """The interpreter of the virtual environment that holds Quix Streams, made on first use."""
    folder = _HERE / ".venv-quix"
    python = folder / "bin" / "python"
    if not python.exists():
        print("installing Quix Streams into bench/.venv-quix", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        lock = str(_HERE / "quix.lock")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--require-hashes", "-r", lock], check=True)
    return str(python)


def commands(file: Path, servers: str, prefix: str) -> dict[str, Callable[[], list[str]]]:
    """How each contestant is started."""
    return {
        "ours": lambda: [sys.executable, "-m", "pipeline", "route", "-c", str(file)],
        "plain loop": lambda: [sys.executable, "-m", "bench.plain_loop", str(file)],
        "textbook": lambda: [sys.executable, "-m", "bench.textbook", servers, prefix],
        "quix": lambda: [quix_python(), "-P", str(_HERE / "quix_app.py"), servers, prefix],
    }


def committed(servers: str, group: str, topic: str) -> Callable[[], int]:
    """How far a group has come: the sum of its committed offsets."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": group, "log_level": 0})
    asked = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]

    def progress() -> int:
        while True:
            try:
                return sum(max(0, found.offset) for found in consumer.committed(asked, timeout=30))
            except KafkaException:  # the coordinator is still loading
                time.sleep(0.2)

    return progress


def one_round(name: str, number: int, hits: int, servers: str, folder: Path, separators: tuple[str, str]) -> Sample:
    """A fresh backlog, and one contestant through it."""
    prefix = f"{name.replace(' ', '-')}-{number}-"
    hits //= _FEWER.get(name, 1)
    file, config = configure(folder, servers, prefix)
    preload(config, hits, separators)
    group = {"textbook": f"{prefix}textbook", "quix": f"{prefix}quix"}.get(name, f"{prefix}route")
    progress = committed(servers, group, TopicNames(prefix).hits_raw)
    return measure(commands(file, servers, prefix)[name](), progress, hits, folder / f"{name}.log")


def main() -> int:
    """Prints; exit code 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hits", type=int, default=60_000)
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument(
        "--spaced", action="store_true", help="JSON with spaces in the router's hits, as Python writes it"
    )
    parser.add_argument("--only", nargs="*", help=", ".join(_ALL))
    options = parser.parse_args()
    separators = SPACED if options.spaced else COMPACT
    wanted = options.only or [*_ALL]
    contestants = [name for name in ("ours", "plain loop", "textbook", "quix") if name in wanted]
    console = Console()
    with tempfile.TemporaryDirectory(prefix="hitrouter-bench-") as name:
        folder = Path(name)
        broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
        broker.start()
        try:
            samples: dict[str, list[Sample]] = {contestant: [] for contestant in contestants}
            for number in range(options.rounds):
                for contestant in contestants:
                    try:
                        sample = one_round(
                            contestant, number, options.hits, broker.bootstrap_servers, folder, separators
                        )
                    except RuntimeError as error:
                        console.print(f"round {number + 1}: {contestant} failed: {error}", markup=False)
                        log = (folder / f"{contestant}.log").read_text(errors="replace")
                        console.print(log[-800:], markup=False)
                        continue
                    samples[contestant].append(sample)
                    console.print(f"round {number + 1}: {contestant} {sample.cpu_us:.1f} us, {sample.per_second:.0f}/s")
            if contestants:
                show(console, samples)
            if "http" in wanted:
                show_http(console, folder, broker.bootstrap_servers, options.rounds, options.requests)
            if "slow clients" in wanted:
                found = measure_slow_clients(folder, broker.bootstrap_servers, options.rounds)
                console.print(told(*found))
            if "start-up" in wanted:
                console.print(
                    start_up.told(start_up.measure_start_up(folder, broker.bootstrap_servers, options.rounds))
                )
            if "deliver" in wanted:
                measure_deliver(console, broker.bootstrap_servers, folder, options.rounds)
            if "stages" in wanted:
                stages = measure_stages(separators)
                parts = ", ".join(f"{name} {cost:.1f}" for name, cost in stages.items() if name != "total")
                console.print(
                    f"stages, 12 connections, geo, user agent, campaign: {parts}: {stages['total']:.1f} us per hit (goal 12)"
                )
            if "latency" in wanted:
                latency = measure_latency(folder, broker.bootstrap_servers)
                console.print(
                    f"204 to reader at {latency['per_second']:.0f} hits/s: p50 {latency['p50_ms']:.0f} ms (goal 80), "
                    f"p99 {latency['p99_ms']:.0f} ms (goal 200)"
                )
            if "stores" in wanted:
                rebuild = measure_rebuild(configure(folder, broker.bootstrap_servers, "rebuild-")[1])
                console.print(f"rebuild of 1 M ids from seen-hits: {rebuild:.2f} s of CPU (goal 5)")
        finally:
            broker.stop()
    if "stores" in wanted:
        stores = measure_stores()
        console.print(
            f"seen store at 1 M ids: {stores['cpu_us_per_hit']:.2f} us per hit (goal 3), "
            f"{stores['bytes_per_id']:.0f} bytes per id (goal 32), longest batch {stores['longest_batch_ms']:.0f} ms "
            f"(goal 50), {stores['rebuild_cpu_seconds']:.2f} s of CPU to take over 1 M ids from blocks"
        )
    return 0


def show_http(console: Console, folder: Path, servers: str, rounds: int, requests: int) -> None:
    """Interleaved rounds of all HTTP servers; goals are ratios to nginx."""
    contestants = http.Contestants(folder, servers)
    found: dict[int, dict[str, list[float]]] = {
        connections: {name: [] for name in http.NAMES} for connections in http.CONNECTIONS
    }
    for number in range(rounds):
        for connections, costs in found.items():
            for name in http.NAMES:
                cost = contestants.run(name, requests, connections)
                if cost is not None:
                    costs[name].append(cost)
                    console.print(f"round {number + 1}: {name}, {connections} connections {cost:.1f} us")
    for connections, costs in found.items():
        console.print(f"one process each, 1 KB hits, {connections} connections:")
        console.print(http_table(costs))


def http_table(found: Mapping[str, Sequence[float]]) -> Table:
    """By server, its CPU-microseconds per request of each round."""
    nginx = statistics.median(found["nginx return 204"]) if found["nginx return 204"] else None
    goals = {"ours without Kafka": "at most 1.3", "ours acked": "at most 3", "ours batch, per event": "at most 0.8"}
    table = Table("server", "CPU-us per request (median)", "min - max", "of nginx", "goal")
    for name, costs in found.items():
        if costs:
            median = statistics.median(costs)
            ratio = f"{median / nginx:.2f}" if nginx else "nginx is not installed"
            table.add_row(name, f"{median:.1f}", f"{min(costs):.1f} - {max(costs):.1f}", ratio, goals.get(name, ""))
    return table


def show(console: Console, samples: dict[str, list[Sample]]) -> None:
    """Medians, spread, and our ratio to each."""
    medians = {name: statistics.median(s.cpu_us for s in found) for name, found in samples.items() if found}
    goals = {"textbook": "ours at most 1/35", "plain loop": "ours at most 1.15", "quix": "ours at most 1/4"}
    table = Table("contestant", "CPU-us per hit (median)", "min - max", "ours / it", "goal")
    for name, median in medians.items():
        values = [sample.cpu_us for sample in samples[name]]
        ratio = f"{medians['ours'] / median:.3f}" if "ours" in medians else ""
        table.add_row(name, f"{median:.1f}", f"{min(values):.1f} - {max(values):.1f}", ratio, goals.get(name, ""))
    console.print(f"{PARTITIONS} partitions, 1 KB hits, 10 % duplicates, {len(OUTPUTS)} outputs, acked:")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
