"""Runs intake, router and deliverer under load, with a topic, a webhook and files as destinations, without restarts."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.operations.ledger import read_ledger
from tests.faults.checker import check
from tests.faults.delivering import start_fault_server
from tests.faults.dump import read_found, wait_until_routed
from tests.faults.reader import ArrivalReader
from tests.faults.stalled import Receiver
from tests.faults.traffic import CONNECTIONS, TOKENS, Sent, Traffic
from tests.faults.workers import Worker, stop_all
from tests.roles import free_admin_listen, wait_until, written

PATIENCE_SECONDS = 180.0
_WEBHOOK, _FILES = "hook", "files"


@dataclass(slots=True)
class Report:
    """Result of a run. `problems` is empty if the guarantee held."""

    hits: int = 0
    repeats: int = 0
    """Webhook requests for a hit that the webhook had accepted before."""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def show(self, title: str) -> None:
        """Print the result."""
        print(title)
        print(f"  {self.hits} hits; {self.repeats} webhook requests came again")
        print("\n".join(f"  {line}" for line in (*self.problems, *self.notes)) or "  kept", flush=True)


class PipelineTraffic(Traffic):
    """Sends hits for the Kafka connections of the proof; webhook and files also get those without `All: false`."""

    def _hit(self, number: int) -> Sent:
        hit = super()._hit(number)
        if not hit.dead and b'"All": false' not in hit.value:
            hit.connections |= {_WEBHOOK, _FILES}
        return hit


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
        """Start everything, and wait until the first hits have arrived at each end."""
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
        """Send no new hits, and wait until every hit is answered."""
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
        """Return the first arrival of each hit, by end of the pipeline and number of the hit, in seconds since 1970."""
        self._look_at_files()
        return {
            "topic": {marker[1:]: at for marker, at in self.reader.arrived_at.copy().items()},
            "webhook": {name.removeprefix("hit-"): at for name, at in self.hook.came.copy().items()},  # type: ignore[attr-defined]
            "files": dict(self._file_arrivals),
        }

    def file_lines(self) -> list[str]:
        """Return the hitId of each line of each file."""
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
        """Return the seconds from `moment` to the first hit accepted after it, by end; ends without such a hit are missing."""
        accepted = self.traffic.answered_at.copy()
        flow = {}
        for end, came in self.arrivals().items():
            # Most hits arrived before `moment`, so checking that first is fast.
            if times := [
                at for number, at in came.items() if at >= moment and accepted.get(f"m{number}", 0.0) >= moment
            ]:
                flow[end] = min(times) - moment
        return flow

    def is_caught_up(self) -> bool:
        """Return whether nearly all accepted hits have arrived at the webhook."""
        due = sum(hit.stored and _WEBHOOK in hit.connections for hit in self.traffic.sent.copy())
        return due - len(self.hook.taken) < 2 * self.traffic.rate

    def ended(self) -> list[str]:
        """Return the workers that have ended since the start, with their exit codes."""
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
            "admin": {"listen": free_admin_listen()},
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


def judge(pipeline: Pipeline, report: Report) -> None:
    """Stop the traffic, let everything arrive, and compare what was sent with what each end holds."""
    pipeline.stop_traffic()
    config, sent = pipeline.config, pipeline.traffic.sent
    report.hits = len(sent)
    report.problems += pipeline.ended()
    if not wait_until_routed(config, PATIENCE_SECONDS):
        report.problems.append("hits-raw was not read to its end")
    with suppress(AssertionError):
        wait_until(lambda: not _pending(config), "an empty backlog", PATIENCE_SECONDS, 3.0)
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


def keep_logs(folder: Path, report: Report) -> None:
    """Copy the logs of `folder`, which is removed, and note where they are."""
    kept = Path(tempfile.mkdtemp(prefix="hitrouter-brokers-logs-"))
    for log in (*folder.glob("*.log"), *folder.glob("kafka/broker.log*")):
        (kept / log.name).write_bytes(log.read_bytes())
    report.notes.append(f"logs are in {kept}")
