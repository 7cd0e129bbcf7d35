"""`make prove ARGS="--soak 7200"`: two hours of ageing, restarts, growth, bad edits and signals, and the verdict."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.development.fault_server import FaultServer, Rule
from pipeline.kafka.topics import TopicNames
from tests.faults.delivering import start_fault_server
from tests.faults.soak.product import ROLES, Product
from tests.faults.soak.sender import ALWAYS, RARE, send
from tests.faults.soak.verdict import Books, SoakVerdict, judge
from tests.faults.soak.watch import Watcher, note_aside, note_entry, note_hit, note_letter

HOOKS = ("hook", "flaky", RARE)
_FLOW_SECONDS = 120.0
_SETTLE_SECONDS = 180.0
_COMMAND_SECONDS = 30.0
"""A command that takes longer than this on a busy machine hangs."""
_AWAY_SECONDS = (5.0, 60.0)
_MOST_MARKERS = 20
"""Offsets that retention took: each marker stands behind a hit, but for the first of each partition."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """`seconds` of traffic at `rate` hits per second; topics keep records for `retention` seconds."""

    seconds: float
    seed: int
    rate: float = 30.0
    retention: int = 180
    pause: tuple[float, float] = (10.0, 40.0)


@dataclass(slots=True)
class SoakReport:
    """What came out; `problems` is empty when the promise was kept and nobody had to help."""

    verdict: SoakVerdict = field(default_factory=SoakVerdict)
    problems: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    recoveries: list[float] = field(default_factory=list)
    command_seconds: list[float] = field(default_factory=list)
    accepted: int = 0


class Soak:
    """One run in a folder of its own."""

    def __init__(self, plan: SoakPlan, say: Say) -> None:
        self.plan = plan
        self.say = say
        self.draw = random.Random(plan.seed)
        self.folder = Path(tempfile.mkdtemp(prefix="hitrouter-soak-"))
        self.books = Books()
        self.report = SoakReport()
        self._stack = ExitStack()
        self.servers: dict[str, FaultServer] = {}
        for name in HOOKS:
            self.servers[name], stop = start_fault_server()
            self._stack.callback(stop)
        self.product = Product(self.folder, {n: f"{s.url}/{n}" for n, s in self.servers.items()}, plan.retention)
        self._faults = self._sequence()
        self._expired = False

    def _sequence(self) -> Iterator[str]:
        """Endless rounds of all faults, each round in an order of its own."""
        while True:
            names = [
                "broker-term",
                "broker-kill",
                "bad-edit",
                *(f"{role}-{s}" for role in ROLES for s in ("term", "kill")),
            ]
            self.draw.shuffle(names)
            yield from names

    async def execute(self) -> SoakReport:
        """Run all of it. Logs stay in `folder` when there are problems."""
        names = TopicNames("")
        self.product.start()
        self._stack.callback(lambda: self.product.stop() if self.product.is_running else None)
        topics = {name: names.deliveries(name) for name in (*sorted(ALWAYS), RARE)}
        watcher = Watcher(
            self.product.broker.bootstrap_servers,
            {
                names.hits_raw: note_hit(self.books, names.hits_raw),
                names.dead_letters: note_letter(self.books),
                names.ledger: note_entry(self.books),
                names.set_aside: note_aside(self.books),
                **{topic: note_hit(self.books, topic) for topic in topics.values()},
            },
        )
        self.books.taken = {name: server.taken for name, server in self.servers.items()}
        stop = asyncio.Event()
        listen = self.product.settings["intake"]["listen"]
        sending = asyncio.create_task(send(self.books, f"http://{listen}/track", self.plan.rate, self.draw, stop))
        try:
            await self._flow("start")
            await self._hurt()
            stop.set()
            await sending
            await self._settle(watcher)
            code = await asyncio.to_thread(self.product.command, "ledger")
            (self.folder / "ledger.txt").write_text(code[1] + code[2])
            ended = await asyncio.to_thread(self.product.stop)
            if ended != 0:
                self.report.problems.append(f"`up` ended with exit code {ended}")
            self._judge(names.hits_raw, topics)
        finally:
            sending.cancel()
            watcher.stop()
            self._stack.close()
        return self.report

    def forget(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # Faults ----------------------------------------------------------------------------------------------------------

    async def _hurt(self) -> None:
        began = time.monotonic()
        grown = broken = mended = False
        while (passed := time.monotonic() - began) < self.plan.seconds:
            share = passed / self.plan.seconds
            if share > 0.15 and not broken:
                broken = True
                self.servers["flaky"].replace([Rule(status=401)])  # type: ignore[call-arg]
                self._note("misconfigured")
            due = passed > 0.15 * self.plan.seconds + self._misconfigured_seconds
            if broken and not mended and due and self._expired:
                mended = True
                self.servers["flaky"].replace([])
                self._note("mended")
            if share > 0.5 and not grown:
                grown = True
                await self._grow()
            fault = next(self._faults)
            self._note(fault)
            await self._one(fault)
            if not self.product.is_running:
                self.report.problems.append("`up` has ended by itself")
                return
            await self._flow(fault)
            await self._commands()
            await asyncio.sleep(self.draw.uniform(*self.plan.pause))
        await self._wait_for_expiry()
        self.servers["flaky"].replace([])

    async def _wait_for_expiry(self) -> None:
        """Keep the connection misconfigured until retention has taken some of its hits, or for three times its length."""
        deadline = time.monotonic() + 3 * self.plan.retention
        while not self._expired and time.monotonic() < deadline:
            await asyncio.sleep(5)
            self._note_expired((await asyncio.to_thread(self.product.ledger))[1])

    def _note_expired(self, ledger: dict[str, Any]) -> None:
        # The upper bound: once the ledger has lost its first entries, the lower one is 0.
        taken = ledger.get("connections", {}).get("flaky", {}).get("expired_at_most", 0)
        self._expired = self._expired or taken > _MOST_MARKERS

    @property
    def _misconfigured_seconds(self) -> float:
        """Longer than retention: some hits must expire."""
        return min(0.5 * self.plan.seconds, 2.5 * self.plan.retention)

    async def _one(self, fault: str) -> None:
        kind, _, how = fault.partition("-")
        if kind == "broker":
            stop = self.product.broker.kill if how == "kill" else self.product.broker.stop
            await asyncio.to_thread(stop)
            await asyncio.sleep(min(self.draw.uniform(*_AWAY_SECONDS), self.plan.seconds / 10))
            await asyncio.to_thread(self.product.broker.start)
        elif kind == "bad":
            self.product.edit(self.product.good + "\nunknown_key: 1\n")
            await asyncio.sleep(4)
            await asyncio.to_thread(self.product.hurt, self.draw.choice(ROLES), signal.SIGKILL)
            await asyncio.sleep(self.draw.uniform(5, 15))
            self.product.edit(self.product.good)
        else:
            await asyncio.to_thread(self.product.hurt, kind, signal.SIGKILL if how == "kill" else signal.SIGTERM)

    async def _grow(self) -> None:
        self._note("growth")
        code, output, errors, _ = await asyncio.to_thread(self.product.command, "topics", "--partitions", "8")
        if code != 0:
            self.report.problems.append(f"topics --partitions 8: exit code {code}: {output}{errors}")
        for role in ("route", "deliver"):
            await asyncio.to_thread(self.product.hurt, role, signal.SIGTERM)

    def _note(self, fault: str) -> None:
        self.report.faults[fault] = self.report.faults.get(fault, 0) + 1
        self.say(f"{fault}: {len(self.books.accepted)} hits accepted, {len(self.servers['hook'].taken)} delivered")

    # Checks on the way -----------------------------------------------------------------------------------------------

    async def _flow(self, after: str) -> None:
        """Wait until a hit that is accepted from now on has gone the whole way to the webhook."""
        began = time.monotonic()
        known = len(self.books.sent)
        while time.monotonic() < began + _FLOW_SECONDS:
            taken = self.servers["hook"].taken
            if any(int(hit_id.removeprefix("hit-")) >= known for hit_id in list(taken)[-200:]):
                self.report.recoveries.append(time.monotonic() - began)
                self.say(f"  flow after {after}: {self.report.recoveries[-1]:.1f} s")
                return
            await asyncio.sleep(0.1)
        self.report.problems.append(f"after {after} no hit went through within {_FLOW_SECONDS:.0f} s")

    async def _commands(self) -> None:
        """`ledger` and `explain` end within seconds, say nothing wrong, and never see a sum that does not add up."""
        code, ledger, seconds = await asyncio.to_thread(self.product.ledger)
        self.report.command_seconds.append(seconds)
        self._note_expired(ledger)
        if seconds > _COMMAND_SECONDS or code not in (0, 1) or ledger["problems"]:
            self.report.problems.append(f"ledger: exit code {code} after {seconds:.0f} s: {ledger['problems']}")
        hit_id = self.draw.choice(sorted(self.books.accepted)[-2000:])
        code, output, errors, seconds = await asyncio.to_thread(self.product.command, "explain", hit_id)
        self.report.command_seconds.append(seconds)
        if seconds > _COMMAND_SECONDS or code not in (0, 1):
            self.report.problems.append(f"explain {hit_id}: exit code {code} after {seconds:.0f} s: {output}{errors}")

    async def _settle(self, watcher: Watcher) -> None:
        """Wait until nothing is pending and the watcher has read everything."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        ledger = {}
        while time.monotonic() < deadline:
            _, ledger, _ = await asyncio.to_thread(self.product.ledger)
            sums = ledger.get("connections", {}).values()
            if sums and not any(each["pending"] for each in sums) and time.monotonic() > watcher.read_at + 5:
                return
            await asyncio.sleep(2)
        self.report.problems.append(f"hits are still pending {_SETTLE_SECONDS:.0f} s after the end: {ledger}")

    def _judge(self, hits_raw: str, topics: dict[str, str]) -> None:
        report = self.report
        report.accepted = len(self.books.accepted)
        report.verdict = judge(self.books, hits_raw, topics)
        report.problems += report.verdict.problems
        log = self.product.log_text()
        if "Traceback" in log:
            report.problems.append(f"{log.count('Traceback')} tracebacks in {self.folder}/up.log")
        codes = [
            line for line in log.splitlines() if "exit code" in line and "-9" not in line and "exit code 0" not in line
        ]
        report.problems += [f"a role ended by itself: {line}" for line in codes]
        if not report.verdict.counts.get("flaky", {}).get("expired"):
            report.problems.append("inconclusive: no hit of the misconfigured connection expired")


def prove_soak(plan: SoakPlan, say: Say) -> bool:
    """Run a soak and print what came out. True when the promise was kept."""
    began = time.monotonic()
    soak = Soak(plan, say)
    report = asyncio.run(soak.execute())
    print(f"soak (seed {plan.seed}, {time.monotonic() - began:.0f} s): {report.accepted} hits, {report.faults}")
    for connection, counts in report.verdict.counts.items():
        print(f"  {connection}: {dict(counts)}")
    if report.recoveries:
        ordered = sorted(report.recoveries)
        print(f"  flow after a fault: median {ordered[len(ordered) // 2]:.1f} s, longest {ordered[-1]:.1f} s")
    if report.command_seconds:
        print(f"  ledger and explain: longest {max(report.command_seconds):.1f} s")
    print("\n".join(f"  {problem}" for problem in report.problems[:20]) or "  kept", flush=True)
    if report.problems:
        print(f"  {len(report.problems)} problems; logs are in {soak.folder}")
    else:
        soak.forget()
    return not report.problems
