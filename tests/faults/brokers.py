"""The broker restarts, its disk fills, a sink's disk fills, the broker is slow: all under load, and no worker may end.

    python -m tests.faults.brokers --restarts 20 --broker-disks 5 --sink-disks 5
    python -m tests.faults.brokers --slow-seconds 300

Intake, router and deliverer run as processes that nobody restarts: each must keep its process id. Every stored hit must be
on its deliveries topics and in the files once, and at the webhook at least once. `flow` is the time from the moment the
broker (or the disk) serves again to the first hit, accepted after that moment, at each end of the pipeline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded import broker as embedded_broker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.operations.ledger import read_ledger
from tests.faults.checker import check
from tests.faults.delivering import start_fault_server
from tests.faults.dump import read_found, wait_until_routed
from tests.faults.reader import ArrivalReader
from tests.faults.slow_proxy import ADD_OFFSETS_TO_TXN, END_TXN, SlowProxy
from tests.faults.stalled import Receiver
from tests.faults.traffic import CONNECTIONS, TOKENS, Sent, Traffic
from tests.faults.workers import Worker, stop_all
from tests.roles import wait_until, written

FLOW_SECONDS = 15.0
_PATIENCE_SECONDS = 180.0
_BROKER_DISK, _SINK_DISK = "3g", "48m"
_DIES_WITHIN_SECONDS = 30.0
_WEBHOOK, _FILES = "hook", "files"
Kind = Literal["terminate", "kill", "broker-disk", "sink-disk"]


@dataclass(frozen=True, slots=True)
class Fault:
    """`seconds` is how long the broker stays away, or the disk full."""

    kind: Kind
    seconds: float


@dataclass(slots=True)
class Recovery:
    """When the broker or disk served again (seconds since 1970), how long it took to, and the flow per end of the pipeline."""

    fault: Fault
    serving_at: float
    start_seconds: float
    flow: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        flow = ", ".join(f"{end} {seconds:.1f}" for end, seconds in self.flow.items())
        return (
            f"{self.fault.kind} {self.fault.seconds:.0f} s: start took {self.start_seconds:.1f} s; flow after {flow} s"
        )


@dataclass(slots=True)
class Report:
    """`problems` is empty when the promise was kept."""

    hits: int = 0
    recoveries: list[Recovery] = field(default_factory=list)
    repeats: int = 0
    """Webhook requests for a hit that had been answered before."""
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class PipelineTraffic(Traffic):
    """Hits for the Kafka connections of the proof, and all but those with `All: false` for webhook and files."""

    def _hit(self, number: int) -> Sent:
        hit = super()._hit(number)
        if not hit.dead and b'"All": false' not in hit.value:
            hit.connections |= {_WEBHOOK, _FILES}
        return hit


def faults_of(restarts: int, broker_disks: int, sink_disks: int, away: tuple[float, float], seed: int) -> list[Fault]:
    """Half of the restarts by SIGTERM, half by kill -9, evenly spread over `away`; shuffled."""
    draw = random.Random(seed)
    step = (away[1] - away[0]) / max(1, restarts - 1)
    faults = [Fault(("terminate", "kill")[n % 2], away[0] + n * step) for n in range(restarts)]  # type: ignore[arg-type]
    faults += [Fault("broker-disk", draw.uniform(5, 20)) for _ in range(broker_disks)]
    faults += [Fault("sink-disk", draw.uniform(5, 20)) for _ in range(sink_disks)]
    draw.shuffle(faults)
    return faults


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """A tmpfs of `size` on `folder`; False where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},huge=never", "tmpfs", str(folder)], check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all room on the disk of `folder`; remove the returned file to free it."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    with ballast.open("wb", buffering=0) as stream, suppress(OSError):
        os.posix_fallocate(stream.fileno(), 0, room.f_bavail * room.f_frsize)
        stream.seek(0, os.SEEK_END)
        while True:
            stream.write(b"x" * 4096)
    return ballast


class Pipeline:
    """Broker, roles, receivers and traffic of one run, in `folder`."""

    def __init__(self, folder: Path, broker: EmbeddedBroker, rate: float, seed: int, max_in_flight: int = 128) -> None:
        self.folder = folder
        self.broker = broker
        self.hook, self._stop_hook = start_fault_server(Receiver())
        self.files = folder / "files"
        self.config = _config(broker, self.hook.url, self.files, max_in_flight)
        file = written(self.config, folder)
        self.workers = [Worker(role, 0, file) for role in ("intake", "route", "deliver")]
        self.traffic = PipelineTraffic(
            f"http://{self.config.intake.listen}/track", broker.bootstrap_servers, rate, random.Random(seed)
        )
        self._stop_traffic = asyncio.Event()
        self._file_arrivals: dict[str, float] = {}
        self._read_names: set[str] = set()

    def start(self) -> None:
        """Everything; returns when the first hits have arrived at each end."""
        ensure_topics(self.config)
        for worker in self.workers:
            worker.start()
        self.reader = ArrivalReader(
            self.broker.bootstrap_servers, TopicNames("").deliveries("all"), self.config.kafka.partitions
        )
        self._sending = threading.Thread(target=lambda: asyncio.run(self._send()), daemon=True)
        self._sending.start()
        wait_until(
            lambda: all(len(arrived) > 20 for arrived in self.arrivals().values()), "the first hits everywhere", 90
        )

    def stop_traffic(self) -> None:
        """No new hits; returns when every hit is answered."""
        self._loop.call_soon_threadsafe(self._stop_traffic.set)
        self._sending.join()

    def stop(self) -> None:
        """End every process and thread."""
        if self._sending.is_alive():
            self.stop_traffic()
        self.reader.stop()
        stop_all(reversed(self.workers))
        self._stop_hook()

    async def _send(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.traffic.run(self._stop_traffic)

    def arrivals(self) -> dict[str, dict[str, float]]:
        """By end of the pipeline, by number of the hit: when it came first, in seconds since 1970."""
        self._look_at_files()
        return {
            "topic": {marker[1:]: at for marker, at in self.reader.arrived_at.copy().items()},
            "webhook": {name.removeprefix("hit-"): at for name, at in self.hook.came.copy().items()},  # type: ignore[attr-defined]
            "files": dict(self._file_arrivals),
        }

    def file_lines(self) -> list[str]:
        """The hitId of each line of each file."""
        paths = [path for path in self.files.iterdir() if path.name.endswith(".jsonl")]
        return [json.loads(line)["hitId"] for path in paths for line in path.read_bytes().splitlines()]

    def _look_at_files(self) -> None:
        for path in self.files.iterdir() if self.files.exists() else ():
            if path.name in self._read_names or not path.name.endswith(".jsonl"):
                continue
            self._read_names.add(path.name)
            at = path.stat().st_mtime
            for line in path.read_bytes().splitlines():
                self._file_arrivals.setdefault(json.loads(line)["hitId"].removeprefix("hit-"), at)

    def flow_since(self, moment: float) -> dict[str, float]:
        """By end, seconds from `moment` to the first hit that was accepted after it; ends without one are left out."""
        accepted = {marker[1:] for marker, at in self.traffic.answered_at.copy().items() if at >= moment}
        flow = {}
        for end, came in self.arrivals().items():
            if times := [at for number, at in came.items() if number in accepted]:
                flow[end] = min(times) - moment
        return flow

    def is_caught_up(self) -> bool:
        """Says whether nearly every hit that was accepted has arrived at the webhook."""
        accepted, came = self.traffic.answered_at.copy(), self.arrivals()["webhook"]
        late = [number for number in came if f"m{number}" in accepted]
        due = [hit for hit in self.traffic.sent.copy() if hit.stored and _WEBHOOK in hit.connections]
        return len(due) - len(late) < 2 * self.traffic.rate

    def ended(self) -> list[str]:
        """Workers that have ended since the start."""
        return [f"{w.role} ended with exit codes {w.exit_codes}" for w in self.workers if w.exit_codes or w.starts != 1]


def _config(broker: EmbeddedBroker, url: str, files: Path, max_in_flight: int) -> Config:
    delivery = {"allow_private": True, "longest_backoff": "2s"}
    kafka = {
        name: {"destination": "Kafka", **({"projects": projects} if projects else {})}
        for name, projects in CONNECTIONS.items()
    }
    hook = {"settings": {"url": url}, "delivery": {**delivery, "max_in_flight": max_in_flight}}
    return Config.model_validate(
        {
            "kafka": {"bootstrap_servers": broker.bootstrap_servers},
            "intake": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
            "projects": {name: {"tokens": [token]} for name, token in TOKENS.items()},
            "connections": {
                **kafka,
                _WEBHOOK: {"destination": "Webhook", **hook},
                _FILES: {
                    "destination": "Files",
                    "settings": {"path": str(files)},
                    "delivery": {"longest_backoff": "2s"},
                },
            },
        }
    )


def hurt(pipeline: Pipeline, fault: Fault) -> Recovery:
    """Do `fault`, end it after its time, and return when the broker or disk serves again."""
    broker, ballast = pipeline.broker, None
    if fault.kind == "sink-disk":
        ballast = fill(pipeline.files)
        time.sleep(fault.seconds)
        ballast.unlink()
        return Recovery(fault, time.time(), 0.0)
    if fault.kind == "broker-disk":
        ballast = fill(broker.node.data)
        assert broker.process is not None
        with suppress(subprocess.TimeoutExpired):
            broker.process.wait(_DIES_WITHIN_SECONDS)
        broker.kill()
    elif fault.kind == "kill":
        broker.kill()
    else:
        broker.stop()
    time.sleep(fault.seconds)
    if ballast is not None:
        ballast.unlink()
    began = time.monotonic()
    broker.start()
    return Recovery(fault, time.time(), time.monotonic() - began)


def run_faults(
    faults: Sequence[Fault], rate: float, seed: int, told: Callable[[str], None] = lambda text: None
) -> Report:
    """All `faults`, one after the other, each when the one before has recovered."""
    report = Report()
    draw = random.Random(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hitrouter-brokers-")))
        disks = [
            stack.enter_context(small_disk(folder / name, size))
            for name, size in (("kafka", _BROKER_DISK), ("files", _SINK_DISK))
        ]
        if not all(disks):
            report.skipped = [str(fault) for fault in faults if fault.kind.endswith("disk")]
            faults = [fault for fault in faults if not fault.kind.endswith("disk")]
        broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
        broker.start()
        stack.callback(broker.stop)
        pipeline = Pipeline(folder, broker, rate, seed)
        pipeline.start()
        stack.callback(pipeline.stop)
        for number, fault in enumerate(faults, 1):
            recovery = hurt(pipeline, fault)
            _await_flow(pipeline, recovery, report)
            report.recoveries.append(recovery)
            told(f"{number}/{len(faults)} {recovery}; {', '.join(pipeline.ended()) or 'no worker ended'}")
            with suppress(AssertionError):
                wait_until(pipeline.is_caught_up, "an empty backlog", _PATIENCE_SECONDS)
            time.sleep(draw.uniform(2.0, 6.0))
        judge(pipeline, report)
        if report.problems:
            _keep_logs(folder, report)
    return report


def _await_flow(pipeline: Pipeline, recovery: Recovery, report: Report) -> None:
    try:
        wait_until(lambda: len(pipeline.flow_since(recovery.serving_at)) == 3, "flow", _PATIENCE_SECONDS)
    except AssertionError:
        report.problems.append(f"no flow within {_PATIENCE_SECONDS:.0f} s after {recovery.fault}")
    recovery.flow = pipeline.flow_since(recovery.serving_at)
    if max(recovery.flow.values(), default=0.0) > FLOW_SECONDS:
        report.problems.append(f"{recovery}: {FLOW_SECONDS:.0f} s are allowed")


def judge(pipeline: Pipeline, report: Report) -> None:
    """Stop the traffic, let everything arrive, and compare what was sent with what each end holds."""
    pipeline.stop_traffic()
    config, sent = pipeline.config, pipeline.traffic.sent
    report.hits = len(sent)
    report.problems += pipeline.ended()
    if not wait_until_routed(config, _PATIENCE_SECONDS):
        report.problems.append("hits-raw was not read to its end")
    with suppress(AssertionError):
        wait_until(lambda: not _pending(config), "an empty backlog", _PATIENCE_SECONDS)
    report.problems += [f"{name}: {count} pending" for name, count in _pending(config).items()]
    verdict = check(sent, read_found(config)[0])
    report.problems += [f"{kind}: {getattr(verdict, kind)[:5]}" for kind in verdict.kinds]
    due = {f"hit-{hit.marker[1:]}" for hit in sent if hit.stored and _WEBHOOK in hit.connections}
    lines = pipeline.file_lines()
    for name, holds in ((_WEBHOOK, set(pipeline.hook.taken)), (_FILES, set(lines))):
        if missing := due - holds:
            report.problems.append(f"{name}: {len(missing)} missing: {sorted(missing)[:5]}")
    if len(lines) != len(set(lines)):
        report.problems.append(f"{_FILES}: {len(lines) - len(set(lines))} lines twice")
    report.repeats = pipeline.hook.taken.total() - len(pipeline.hook.taken)


def _pending(config: Config) -> dict[str, int]:
    sums = read_ledger(config).connections
    return {name: sums[name].pending for name in (_WEBHOOK, _FILES) if name in sums and sums[name].pending}


def _keep_logs(folder: Path, report: Report) -> None:
    kept = Path(tempfile.mkdtemp(prefix="hitrouter-brokers-logs-"))
    for log in (*folder.glob("*.log"), *folder.glob("kafka/broker.log*")):
        (kept / log.name).write_bytes(log.read_bytes())
    report.notes.append(f"logs are in {kept}")


@dataclass(slots=True)
class SlowReport(Report):
    """Rates in hits per second at the read_committed reader; the longest ways from 204 to the reader and to the webhook."""

    before_per_second: float = 0.0
    slow_per_second: float = 0.0
    longest_to_topic_seconds: float = 0.0
    longest_to_webhook_seconds: float = 0.0


@contextmanager
def slowed_broker(folder: Path) -> Iterator[tuple[EmbeddedBroker, SlowProxy]]:
    """A broker that clients reach through a proxy."""
    direct, proxied = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    plain = embedded_broker.server_properties
    embedded_broker.server_properties = lambda node, nodes: (
        plain(node, nodes) + f"advertised.listeners=PLAINTEXT://{proxied}\n"
    )
    proxy = SlowProxy(proxied, direct)
    broker = EmbeddedBroker(direct, folder / "kafka")
    try:
        broker.start()
        yield broker, proxy
    finally:
        broker.stop()
        proxy.stop()
        embedded_broker.server_properties = plain


def run_slow_broker(
    seconds: float, commit_seconds: float, rate: float, seed: int, told: Callable[[str], None] = lambda text: None
) -> SlowReport:
    """Each commit takes `commit_seconds` for `seconds`, under `rate` hits per second."""
    report = SlowReport()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hitrouter-brokers-")))
        broker, proxy = stack.enter_context(slowed_broker(folder))
        pipeline = Pipeline(folder, broker, rate, seed, max_in_flight=2000)
        pipeline.start()
        stack.callback(pipeline.stop)
        time.sleep(10)
        report.before_per_second = _arrived_per_second(pipeline, time.time() - 10, time.time())
        proxy.delays = {ADD_OFFSETS_TO_TXN: commit_seconds / 2, END_TXN: commit_seconds / 2}
        began = time.time()
        told(f"each commit takes {commit_seconds:.1f} s from now on")
        while time.time() < began + seconds:
            time.sleep(min(10.0, seconds))
            told(f"{len(pipeline.arrivals()['topic'])} hits routed; {', '.join(pipeline.ended()) or 'no worker ended'}")
        proxy.delays = {}
        ended = time.time()
        judge(pipeline, report)
        settled = began + 3 * commit_seconds
        report.slow_per_second = _arrived_per_second(pipeline, settled, ended)
        arrivals = pipeline.arrivals()
        report.longest_to_topic_seconds = _longest(pipeline, arrivals["topic"])
        report.longest_to_webhook_seconds = _longest(pipeline, arrivals["webhook"])
        if report.slow_per_second < report.before_per_second * 0.9:
            report.problems.append("the router did not keep up with the traffic while the broker was slow")
        if report.problems:
            _keep_logs(folder, report)
    return report


def _arrived_per_second(pipeline: Pipeline, begin: float, end: float) -> float:
    return sum(begin <= at < end for at in pipeline.arrivals()["topic"].values()) / (end - begin)


def _longest(pipeline: Pipeline, came: dict[str, float]) -> float:
    accepted = pipeline.traffic.answered_at
    return max((at - accepted[f"m{number}"] for number, at in came.items() if f"m{number}" in accepted), default=0.0)


def prove_brokers(
    restarts: int, broker_disks: int, sink_disks: int, away: tuple[float, float], rate: float, seed: int
) -> bool:
    """True when the promise was kept."""
    began = time.monotonic()
    report = run_faults(faults_of(restarts, broker_disks, sink_disks, away, seed), rate, seed, _told)
    _show(f"{restarts} broker restarts, {broker_disks} + {sink_disks} full disks", report, began, rate, seed)
    flows = sorted(max(recovery.flow.values()) for recovery in report.recoveries if recovery.flow)
    if flows:
        print(
            f"  flow after the broker or disk served again: median {flows[len(flows) // 2]:.1f} s, worst {flows[-1]:.1f} s"
        )
    for recovery in report.recoveries:
        print(f"    {recovery}")
    print(
        "\n".join(f"  SKIPPED, no right to mount a small disk: {fault}" for fault in report.skipped) or "", flush=True
    )
    return not report.problems


def prove_slow_broker(seconds: float, rate: float, seed: int) -> bool:
    """True when the promise was kept."""
    began = time.monotonic()
    report = run_slow_broker(seconds, 2.0, rate, seed, _told)
    _show(f"2 s per commit for {seconds:.0f} s", report, began, rate, seed)
    print(f"  hits/s at the reader: {report.before_per_second:.0f} before, {report.slow_per_second:.0f} while slow")
    print(f"  longest way from 204 to the topic {report.longest_to_topic_seconds:.1f} s", end="")
    print(f", to the webhook {report.longest_to_webhook_seconds:.1f} s", flush=True)
    return not report.problems


def _show(title: str, report: Report, began: float, rate: float, seed: int) -> None:
    print(f"{title} (seed {seed}, {time.monotonic() - began:.0f} s) at {rate:.0f} hits/s")
    print(f"  {report.hits} hits; {report.repeats} webhook requests came again")
    print("\n".join(f"  {line}" for line in (*report.problems, *report.notes)) or "  kept")


def _told(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Exit code 0 when everything was kept."""
    parser = argparse.ArgumentParser(prog="brokers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--broker-disks", type=int, default=0)
    parser.add_argument("--sink-disks", type=int, default=0)
    parser.add_argument("--away", type=float, nargs=2, default=(5.0, 60.0), metavar="SECONDS")
    parser.add_argument("--slow-seconds", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=20261127)
    options = parser.parse_args()
    kept = True
    if options.restarts + options.broker_disks + options.sink_disks:
        counts = (options.restarts, options.broker_disks, options.sink_disks)
        kept &= prove_brokers(*counts, (options.away[0], options.away[1]), options.rate, options.seed)
    if options.slow_seconds:
        kept &= prove_slow_broker(options.slow_seconds, options.rate, options.seed)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
