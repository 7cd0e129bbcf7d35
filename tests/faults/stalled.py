"""Measures the effect of one dead webhook on others, and how fast its backlog arrives after its recovery.

The outage is simulated: the topic of the dead connection is filled with the backlog of an hour, while its destination answers with 503
or not at all. Everything else is real: Kafka, router, deliverer, HTTP.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from confluent_kafka import Producer

from pipeline.codec.hit import decode_hit
from pipeline.codec.routed_hit import encode_routed_hit
from pipeline.config.models import Config
from pipeline.development.fault_server import FaultServer, Rule
from pipeline.kafka.topics import TopicNames
from pipeline.operations.ledger import read_ledger
from pipeline.operations.read_topic import read_topic
from tests.faults.delivering import start_fault_server
from tests.faults.workers import Worker, route_and_deliver
from tests.roles import hit, put

DEAD = "hook-0"
_ARRIVE_SECONDS = 900.0
_TICK_SECONDS = 0.1


class Receiver(FaultServer):
    """Records when each hit arrived first."""

    def __init__(self) -> None:
        super().__init__()
        self.came: dict[str, float] = {}

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        before = self.taken.total()
        answer = await super()._answer(request)
        if self.taken.total() > before:
            self.came.setdefault(request.headers.get("webhook-id", ""), time.time())
        return answer


@dataclass(slots=True)
class StalledReport:
    """Latencies from the deliveries topic to the receiver in ms, rates in hits per second, memory of the deliverer in MB."""

    before_p99_ms: float = 0.0
    during_p99_ms: float = 0.0
    backlog: int = 0
    live_per_second: float = 0.0
    recovered_per_second: float = 0.0
    idle_after_recovery_seconds: float = 0.0
    memory_before_mb: float = 0.0
    memory_most_mb: float = 0.0
    problems: list[str] = field(default_factory=list)


def stalled_connections(receivers: list[Receiver], longest_backoff: str) -> dict[str, object]:
    """Return a webhook for each receiver; the first one will be dead."""
    delivery = {"allow_private": True, "longest_backoff": longest_backoff}
    return {
        f"hook-{number}": {"destination": "Webhook", "settings": {"url": receiver.url}, "delivery": delivery}
        for number, receiver in enumerate(receivers)
    }


@contextmanager
def receivers(count: int) -> Iterator[list[Receiver]]:
    """Start `count` receivers, and stop them at the end of the block."""
    made = [start_fault_server(Receiver()) for _ in range(count)]
    try:
        yield [server for server, _ in made]  # type: ignore[misc] # the receivers passed in
    finally:
        for _, stop in made:
            stop()


def run_stalled_webhook(
    config: Config,
    hooks: list[Receiver],
    folder: Path,
    rate: int,
    backlog: int,
    phase_seconds: float,
    told: Callable[[str], None] = lambda text: None,
) -> StalledReport:
    """Send live traffic for `phase_seconds`, as long again with one receiver dead, then wait until every hit has arrived."""
    report = StalledReport(backlog=backlog, live_per_second=rate)
    sent: list[str] = []
    stop = threading.Event()

    def send() -> None:
        began = time.monotonic()
        while not stop.is_set():
            due = round((time.monotonic() - began) * rate) - len(sent)
            names = [f"live-{len(sent) + n}" for n in range(due)]
            put(config, *(hit(name, event={"name": "E", "user": {"userId": name}}) for name in names))
            sent.extend(names)
            stop.wait(_TICK_SECONDS)

    sender = threading.Thread(target=send, daemon=True)
    try:
        with route_and_deliver(config, folder) as (route, deliver):
            _until(
                lambda: deliver.log_text().count("partitions assigned: ") > len(hooks) and route.at_work,
                120,
                "roles at work",
            )
            sender.start()
            _until(lambda: all(len(hook.came) > rate for hook in hooks), 60, "the first hits everywhere")
            warm = time.time()
            time.sleep(phase_seconds)
            report.memory_before_mb = _memory_mb(deliver)
            hooks[0].replace([Rule(share=0.3, close=True), Rule(share=0.3, delay=2.0, status=503), Rule(status=503)])
            died = time.time()
            _fill(config, backlog)
            told(f"{DEAD} is dead, {backlog} hits wait for it")
            deadline = time.monotonic() + phase_seconds
            while time.monotonic() < deadline:
                report.memory_most_mb = max(report.memory_most_mb, _memory_mb(deliver))
                time.sleep(0.5)
            hooks[0].replace([])
            back, had = time.time(), len(hooks[0].came)
            told(f"{DEAD} is back")
            _until(lambda: len(hooks[0].came) > had, 120, "the first hit after the outage")
            report.idle_after_recovery_seconds = time.time() - back
            resumed = time.monotonic()
            # Wait for the whole backlog. Live hits continue meanwhile.
            while sum(name.startswith("old-") for name in list(hooks[0].came)) < backlog:
                report.memory_most_mb = max(report.memory_most_mb, _memory_mb(deliver))
                assert time.monotonic() < resumed + _ARRIVE_SECONDS, f"{len(hooks[0].came)} of {backlog} came"
                time.sleep(0.25)
            report.recovered_per_second = (len(hooks[0].came) - had) / (time.monotonic() - resumed)
            stop.set()
            sender.join()
            _until(lambda: all(set(sent) <= hook.came.keys() for hook in hooks), 120, "every live hit everywhere")
            report.before_p99_ms, report.during_p99_ms = (
                _p99(config, hooks, warm, died),
                _p99(config, hooks, died, back),
            )
            _until(lambda: read_ledger(config).connections[DEAD].delivered == len(sent) + backlog, 60, "the ledger")
    except AssertionError as error:
        report.problems.append(str(error))
    finally:
        stop.set()
    return report


def _until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(_TICK_SECONDS)


def _fill(config: Config, backlog: int) -> None:
    """Write the backlog of an hour to the topic of the dead connection. The ledger reports these hits as never routed."""
    producer = Producer({"bootstrap.servers": config.kafka.servers, "queue.buffering.max.messages": 1_000_000})
    topic, hour_ago_ms = TopicNames(config.kafka.topic_prefix).deliveries(DEAD), round(time.time() * 1000) - 3_600_000
    at = "2026-11-24T10:15:30.123Z"
    for number in range(backlog):
        decoded = decode_hit(hit(f"old-{number}", event={"name": "E", "user": {"userId": f"user-{number % 5000}"}}))
        value = encode_routed_hit(decoded, f"old-{number}", "shop", at, at, decoded.context)
        producer.produce(topic, value, decoded.identity.encode(), timestamp=hour_ago_ms + number * 3_600_000 // backlog)
        producer.poll(0)
    assert producer.flush(60) == 0


def _p99(config: Config, hooks: list[Receiver], begin: float, end: float) -> float:
    names = TopicNames(config.kafka.topic_prefix)
    waits = []
    for number, hook in list(enumerate(hooks))[1:]:
        for record in read_topic(config.kafka, names.deliveries(f"hook-{number}")):
            routed = record.timestamp()[1] / 1000
            hit_id = (record.key() or b"").decode()  # each hit has a different user with the name of the hit
            if begin <= routed < end:
                waits.append((hook.came[hit_id] - routed) * 1000)
    return sorted(waits)[math.ceil(len(waits) * 0.99) - 1]


def _memory_mb(worker: Worker) -> float:
    process = worker._process
    assert process is not None, "the deliverer has ended"
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6
