"""Kafka is away for a while under traffic, with and without a kill -9 of the intake in the middle: no 204 is lost.

python -m tests.faults.outage [reject|spill] [--kill] [--seconds 60] [--rate 500]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from pipeline.operations.read_topic import read_topic
from tests.roles import Role, hit, running, wait_until

OnFailure = Literal["reject", "spill"]
_ANSWER_SECONDS = 20
_HEADERS = {"content-type": "application/json", "authorization": "Basic " + base64.b64encode(b"shop-token:").decode()}
_NOTICED_SECONDS = 5.0
"""After so long without Kafka, what was acknowledged before its end has been answered."""


@dataclass(slots=True)
class Outage:
    """What came of it: answers by hitId (0: none) and when each was sent; the records on hits-raw by hitId."""

    on_failure: OnFailure
    killed: bool
    answers: dict[str, int] = field(default_factory=dict)
    sent_at: dict[str, float] = field(default_factory=dict)
    away: tuple[float, float] = (0.0, 0.0)
    stored: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Empty when the promise was kept."""
        accepted = [name for name, status in self.answers.items() if status == 204]
        lost = [name for name in accepted if name not in self.stored]
        found = [f"{len(lost)} hits with a 204 are not on hits-raw: {lost[:5]}"] if lost else []
        if not accepted:
            found.append("no hit was accepted: the run proves nothing")
        allowed = {204, 503} if self.on_failure == "reject" else {204}
        if self.killed:
            allowed.add(0)  # the connection ended with the process
        others = {status: count for status, count in Counter(self.answers.values()).items() if status not in allowed}
        if others:
            found.append(f"answers that are not allowed: {others}")
        began, ended = self.away
        during = Counter(
            self.answers[name]
            for name, sent_at in self.sent_at.items()
            if began + _NOTICED_SECONDS < sent_at < ended - _NOTICED_SECONDS
        )
        wanted = 503 if self.on_failure == "reject" else 204
        if not during[wanted]:
            found.append(f"no {wanted} while Kafka was away: {dict(during)}")
        if set(during) - ({wanted, 0} if self.killed else {wanted}):
            found.append(f"while Kafka was away only {wanted} is right: {dict(during)}")
        if self.left:
            found.append(f"spilled hits were not replayed: {self.left}")
        return found

    def __str__(self) -> str:
        statuses = ", ".join(
            f"{count} x {status or 'none'}" for status, count in sorted(Counter(self.answers.values()).items())
        )
        kill = " and kill -9 in the middle" if self.killed else ""
        return (
            f"Kafka away for {self.away[1] - self.away[0]:.0f} s, {self.on_failure}{kill}: {len(self.answers)} hits; "
            f"answers {statuses}; {len(self.stored)} on hits-raw, {self.stored.total() - len(self.stored)} of them again"
        )


def configured(broker: EmbeddedBroker, folder: Path, on_failure: OnFailure) -> Config:
    """One project, and a spill folder of its own."""
    return Config.model_validate(
        {
            "kafka": {"bootstrap_servers": broker.bootstrap_servers},
            "intake": {
                "listen": f"127.0.0.1:{free_port()}",
                "on_kafka_failure": on_failure,
                "spill": {"folder": str(folder / "spill")},
            },
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
            "projects": {"shop": {"tokens": ["shop-token"]}},
        }
    )


async def _send(config: Config, stop: asyncio.Event, rate: float, outage: Outage) -> None:
    """Each hit once, at most `rate` a second, whatever the answers do."""
    tasks: set[asyncio.Task[None]] = set()

    async def post(session: aiohttp.ClientSession, name: str) -> None:
        outage.sent_at[name] = time.monotonic()
        try:
            async with session.post(
                f"http://{config.intake.listen}/track",
                data=hit(name),
                headers=_HEADERS,
            ) as answer:
                outage.answers[name] = answer.status
        except (aiohttp.ClientError, TimeoutError):
            outage.answers[name] = 0

    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)  # no queue in the client: a hit is sent when its turn is
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        number = 0
        while not stop.is_set():
            task = asyncio.create_task(post(session, f"hit-{number}"))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            # Lost time is not caught up: refused connections cost us so much that the debt would only grow.
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*tasks)


async def _restarted(config: Config, folder: Path) -> Role:
    """As the supervisor does it: again until it is ready; with `reject` it ends itself while Kafka is away."""
    deadline = time.monotonic() + 90
    while True:
        role = Role("intake", config, folder)
        before = role.log.read_text(errors="replace").count("ready:")
        while role.process.poll() is None:
            if role.log.read_text(errors="replace").count("ready:") > before:
                return role
            await asyncio.sleep(0.1)
        assert time.monotonic() < deadline, role.log.read_text(errors="replace")[-2000:]
        await asyncio.sleep(0.5)


async def run_outage(on_failure: OnFailure, kill: bool, seconds: float, rate: float, folder: Path) -> Outage:
    """Traffic; Kafka killed; `seconds` later started again; a moment more of traffic; then every topic is read."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    outage = Outage(on_failure, kill)
    stop = asyncio.Event()
    broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
    await asyncio.to_thread(broker.start)
    config = configured(broker, folder, on_failure)
    successor: asyncio.Task[Role] | None = None
    try:
        with running("intake", config, folder) as role:
            sending = asyncio.create_task(_send(config, stop, rate, outage))
            await asyncio.sleep(2)
            await asyncio.to_thread(broker.kill)
            began = time.monotonic()
            await asyncio.sleep(seconds / 2)
            if kill:
                role.kill()
                successor = asyncio.create_task(_restarted(config, folder))
            await asyncio.sleep(seconds / 2)
            outage.away = (began, time.monotonic())
            await asyncio.to_thread(broker.start)
            if successor is not None:
                await successor
            await asyncio.sleep(3)
            stop.set()
            await sending
            spill = folder / "spill"
            with contextlib.suppress(AssertionError):
                await asyncio.to_thread(wait_until, lambda: not [*spill.rglob("*.spill")], "an empty spill log", 300)
            outage.left = [path.name for path in spill.rglob("*.spill")]
        outage.stored = Counter(
            (record.key() or b"").decode().removeprefix("shop/") for record in read_topic(config.kafka, "hits-raw")
        )
    finally:
        if successor is not None:
            (await successor).kill()
        broker.stop()
    return outage


def prove_outage(on_failure: OnFailure, kill: bool, seconds: float, rate: float, told: Callable[[str], None]) -> bool:
    """True when the promise was kept."""
    told(f"Kafka away for {seconds:.0f} s, {on_failure}{', kill -9 in the middle' if kill else ''}")
    with tempfile.TemporaryDirectory(prefix="hitrouter-outage-") as name:
        outage = asyncio.run(run_outage(on_failure, kill, seconds, rate, Path(name)))
    print(f"{outage} at {rate:.0f} hits/s")
    print("\n".join(f"  {problem}" for problem in outage.problems) or "  kept", flush=True)
    return not outage.problems


def main() -> int:
    """Exit code 0 when kept."""
    parser = argparse.ArgumentParser(prog="outage", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("on_failure", choices=["reject", "spill"])
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=500.0)
    options = parser.parse_args()
    told = lambda text: print(f"  {text}", file=sys.stderr, flush=True)  # noqa: E731
    return 0 if prove_outage(options.on_failure, options.kill, options.seconds, options.rate, told) else 1


if __name__ == "__main__":
    sys.exit(main())
