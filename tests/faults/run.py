"""Executes one run: starts everything, sends hits, injects faults, waits, reads all topics and judges them."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pipeline.config import Config, load_config
from pipeline.kafka.embedded import EmbeddedCluster
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames, ensure_topics
from tests.faults.checker import Verdict, check
from tests.faults.dump import read_found, wait_until_routed
from tests.faults.reader import ArrivalReader
from tests.faults.traffic import CONNECTIONS, TOKENS, Traffic
from tests.faults.workers import Worker, stop_all
from tests.roles import free_admin_listen

FAULTS = ("route-kill", "rebalance", "broker-kill", "intake-kill", "zombie", "leader-loss")
_ROUTE_SLOTS = 3
_SESSION_SECONDS = 6.0
_KILLED_AT_START = 0.15
_PATIENCE_SECONDS = 120.0
"""After several faults at once a slot can stay empty until the rebalance times out; a single fault is judged by its stall."""
_LAUNCHERS: dict[str, tuple[str, ...]] = {"": ("pipeline",), "textbook": ("tests.faults.textbook",)}


@dataclass(slots=True)
class Plan:
    """Parameters of a run; `faults` in order, `rate` in hits per second, `pause` in seconds (least, most)."""

    faults: Sequence[str]
    rate: float
    seed: int
    nodes: int = 1
    mutant: str = ""
    pause: tuple[float, float] = (2.0, 5.0)


@dataclass(slots=True)
class Report:
    """Result of a run. `inconclusive` lists faults without effect; `longest_stall` is in seconds from 204 to a reader."""

    verdict: Verdict
    hits: int = 0
    per_second: float = 0.0
    answers: dict[int, int] = field(default_factory=dict)
    aborted_records: int = 0
    longest_stall: float = 0.0
    recovery: dict[str, float] = field(default_factory=dict)
    inconclusive: list[str] = field(default_factory=list)
    exit_codes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether the guarantee held and the run is conclusive."""
        return not self.verdict.kinds and not self.inconclusive


class Run:
    """The processes of one run, in a temporary folder."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.say = say
        self.draw = random.Random(plan.seed)
        self.folder = Path(tempfile.mkdtemp(prefix="hitrouter-prove-"))
        self.cluster = EmbeddedCluster(self.folder / "kafka", plan.nodes)
        self.file = self.folder / "hitrouter.yaml"
        self.config = self._configure()
        launcher = _LAUNCHERS.get(plan.mutant, ("tests.faults.mutant", plan.mutant))
        self.intake = Worker("intake", 0, self.file, launcher)
        self.routers = [Worker("route", slot, self.file, launcher) for slot in range(_ROUTE_SLOTS)]
        self.live = 1
        self.effects = dict.fromkeys(FAULTS, 0)

    def _configure(self) -> Config:
        settings = {
            "kafka": {
                "bootstrap_servers": self.cluster.bootstrap_servers,
                "replication_factor": self.plan.nodes,
                "partitions": 4,
            },
            "intake": {"listen": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": free_admin_listen()},
            "projects": {name: {"tokens": [token]} for name, token in TOKENS.items()},
            "connections": {
                name: {"destination": "Kafka", **({"projects": projects} if projects else {})}
                for name, projects in CONNECTIONS.items()
            },
        }
        self.file.write_text(yaml.safe_dump(settings))
        return load_config(self.file)

    async def execute(self) -> Report:
        """Run the plan and return its report."""
        await asyncio.to_thread(self.cluster.start)
        await asyncio.to_thread(ensure_topics, self.config)
        self.intake.start()
        await self._until(lambda: "ready: " in self.intake.log_text(), 30, "the intake did not start")
        self.routers[0].start()
        topic = TopicNames("").deliveries("all")
        reader = ArrivalReader(self.cluster.bootstrap_servers, topic, self.config.kafka.partitions)
        traffic = Traffic(
            f"http://{self.config.intake.listen}/track", self.cluster.bootstrap_servers, self.plan.rate, self.draw
        )
        stop = asyncio.Event()
        sending = asyncio.create_task(traffic.run(stop))
        try:
            await self._until(lambda: len(reader.arrived_at) > 50, 60, "the first hits did not arrive")
            for number, fault in enumerate(self.plan.faults, 1):
                self.say(f"{number}/{len(self.plan.faults)} {fault}: {len(reader.arrived_at)} hits have arrived")
                await self._hurt(fault)
                await asyncio.sleep(self.draw.uniform(*self.plan.pause))
            await asyncio.sleep(3.0)
            stop.set()
            await sending
            if self.plan.mutant == "textbook":
                await asyncio.sleep(20.0)  # it commits on a timer, and never beyond a lost record
            patience = 5.0 if self.plan.mutant == "textbook" else 90.0
            done = await asyncio.to_thread(wait_until_routed, self.config, patience)
            report = await asyncio.to_thread(self._report, traffic, reader)
            if not done:
                report.verdict.unaccounted.append("hits-raw was not read to its end within 90 s")
            return report
        finally:
            sending.cancel()
            await asyncio.to_thread(self._stop, reader)

    def _report(self, traffic: Traffic, reader: ArrivalReader) -> Report:
        found, aborted = read_found(self.config)
        report = Report(
            check(traffic.sent, found), len(traffic.sent), len(traffic.sent) / traffic.seconds, traffic.answers, aborted
        )
        waits = [
            arrived - traffic.answered_at[marker]
            for marker, arrived in reader.arrived_at.items()
            if marker in traffic.answered_at
        ]
        report.longest_stall = max(waits, default=0.0)
        report.exit_codes = {f"{w.role}-{w.slot}": w.exit_codes for w in [self.intake, *self.routers]}
        report.inconclusive = self._without_effect(traffic, aborted)
        return report

    def _without_effect(self, traffic: Traffic, aborted: int) -> list[str]:
        asked = {fault: list(self.plan.faults).count(fault) for fault in FAULTS}
        missing = [
            f"{fault}: {self.effects[fault]} of {count} had an effect"
            for fault, count in asked.items()
            if self.effects[fault] < count
        ]
        if asked["route-kill"] > 10 and not aborted:  # about one kill in five happens during an open transaction
            missing.append("route-kill: no transaction was open at any kill")
        if asked["broker-kill"] and not traffic.answers.get(503, 0) + traffic.answers.get(0, 0):
            missing.append("broker-kill: no sender noticed")
        if traffic.answers.get(204, 0) < 100:
            missing.append("fewer than 100 hits were accepted")
        return missing

    # Faults ----------------------------------------------------------------------------------------------------------

    async def _hurt(self, fault: str) -> None:
        done = await {
            "route-kill": self._route_kill,
            "rebalance": self._rebalance,
            "broker-kill": self._broker_kill,
            "intake-kill": self._intake_kill,
            "zombie": self._zombie,
            "leader-loss": self._leader_loss,
        }[fault]()
        self.effects[fault] += bool(done)

    async def _route_kill(self) -> bool:
        """Kill a router, mostly while it routes, sometimes while it is starting."""
        worker = self.draw.choice(self.routers[: self.live])
        if self.draw.random() < 1 - _KILLED_AT_START:
            await self._until(lambda: worker.at_work, _PATIENCE_SECONDS, f"route-{worker.slot} got no partitions")
            await asyncio.sleep(self.draw.uniform(0.0, 1.0))
        return await self._killed(worker)

    async def _intake_kill(self) -> bool:
        return await self._killed(self.intake)

    async def _killed(self, worker: Worker) -> bool:
        before = worker.starts
        worker.kill()
        await self._until(lambda: worker.starts > before, 10, f"{worker.role} did not start again")
        return -signal.SIGKILL in worker.exit_codes

    async def _rebalance(self) -> bool:
        """Start another worker, or stop one."""
        await self._all_at_work()
        await asyncio.sleep(3.0)  # the last rebalance is over for every worker
        before = self._assignments()
        if self.live == 1 or (self.live == 2 and self.draw.random() < 0.5):
            self.routers[self.live].start()
            self.live += 1
            await self._all_at_work()
        else:
            self.live -= 1
            await asyncio.to_thread(self.routers[self.live].stop)
            await self._until(lambda: self._assignments() > before, _PATIENCE_SECONDS, "no rebalance was seen")
        return True

    async def _all_at_work(self) -> None:
        live = self.routers[: self.live]
        await self._until(
            lambda: all(worker.at_work for worker in live), _PATIENCE_SECONDS, "some worker got no partitions"
        )

    def _assignments(self) -> int:
        return sum(worker.log_text().count("partitions assigned: ") for worker in self.routers)

    async def _broker_kill(self) -> bool:
        broker = self.draw.choice(self.cluster.brokers)
        await asyncio.to_thread(broker.kill)
        await asyncio.sleep(self.draw.uniform(0.0, 2.0))
        await asyncio.to_thread(broker.start)
        return True

    async def _zombie(self) -> bool:
        """Pause a worker beyond its session timeout, then resume it after its partitions have moved."""
        await self._all_at_work()
        worker = self.routers[0]
        before = worker.log_text()
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(_SESSION_SECONDS * 1.3)
        worker.signal(signal.SIGCONT)

        def noticed() -> bool:
            log = worker.log_text()[len(before) :]
            return any(word in log for word in ("revoked", "assigned", "aborted", "must restart", "ends"))

        await self._until(noticed, 30, "the resumed worker did not notice")
        return True

    async def _leader_loss(self) -> bool:
        """Kill the leader of a partition of hits-raw; other brokers take over."""
        broker = self.draw.choice(self.cluster.brokers)
        await asyncio.to_thread(broker.kill)
        await asyncio.sleep(self.draw.uniform(2.0, 5.0))
        await asyncio.to_thread(broker.start)
        return True

    async def _until(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{otherwise} within {seconds:.0f} s; logs are in {self.folder}")
            await asyncio.sleep(0.1)

    def _stop(self, reader: ArrivalReader) -> None:
        reader.stop()
        stop_all([self.intake, *self.routers])
        self.cluster.stop()

    def last_lines(self, count: int = 12) -> str:
        """Return the end of every log, for an aborted run whose folder is not accessible."""
        logs = [self.intake.log, *(worker.log for worker in self.routers), *self.folder.glob("kafka/**/broker.log")]
        ends = []
        for log in filter(Path.exists, logs):
            lines = log.read_text(errors="replace").splitlines()[-count:]
            ends += [f"  {log.relative_to(self.folder)}:", *(f"    {line[:300]}" for line in lines)]
        return "\n".join(ends)

    def forget(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
