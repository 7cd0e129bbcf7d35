"""Stops Kafka for a while under traffic, with and without a SIGKILL of the intake meanwhile. No hit with a 204 may be lost.

python -m tests.faults.outage {reject,spill} [--kill] [--seconds 60] [--rate 500]
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import read_topic
from tests.roles import Role, free_admin_listen, hit, listens, running, wait_until

OnFailure = Literal["reject", "spill"]
_ANSWER_SECONDS = 20
_HEADERS = {"content-type": "application/json", "authorization": "Basic " + base64.b64encode(b"shop-token:").decode()}
_EDGE_SECONDS = 3.0
"""Hits sent this close to the end or the return of Kafka can still reach it; they are not counted as sent during the outage."""
_UNDER_WAY_SECONDS = 4.0
"""Maximum age of a hit without an answer when its intake is killed: 2.5 s for Kafka, and a second until librdkafka notices."""
_CATCH_UP_SECONDS = 0.1
"""Maximum lost time to catch up: refused connections take so long that a larger deficit would only grow."""


@dataclass(slots=True)
class Outage:
    """Result of a run: by hitId the answer (0 means none), the time of sending, and the records on hits-raw.

    `away` is the time without Kafka, `down` the time without the killed intake, both on the monotonic clock.
    """

    on_failure: OnFailure
    killed: bool
    answers: dict[str, int] = field(default_factory=dict)
    sent_at: dict[str, float] = field(default_factory=dict)
    away: tuple[float, float] = (0.0, 0.0)
    down: tuple[float, float] = (0.0, 0.0)
    stored: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Violations of the guarantee; empty if it held."""
        accepted = [name for name, status in self.answers.items() if status == 204]
        lost = [name for name in accepted if name not in self.stored]
        found = [f"{len(lost)} hits with a 204 are not on hits-raw: {lost[:5]}"] if lost else []
        allowed = {204, 503} if self.on_failure == "reject" else {204}
        killed_at, back_at = self.down
        answers = {
            name: status
            for name, status in self.answers.items()
            if status or not (self.killed and killed_at - _UNDER_WAY_SECONDS < self.sent_at[name] < back_at)
        }
        others = {status: count for status, count in Counter(answers.values()).items() if status not in allowed}
        if others:
            found.append(f"answers that are not allowed: {others}")
        began, ended = self.away
        before = {status for name, status in answers.items() if self.sent_at[name] < began - _EDGE_SECONDS / 2}
        after = {status for name, status in answers.items() if self.sent_at[name] > ended}
        for when, statuses in (("before Kafka went", before), ("after it was back", after)):
            if 204 not in statuses:
                found.append(f"no 204 {when}: the run proves nothing")
        during = {
            name: status
            for name, status in answers.items()
            if began + _EDGE_SECONDS < self.sent_at[name] < ended - _EDGE_SECONDS
        }
        wanted = 503 if self.on_failure == "reject" else 204
        if set(during.values()) != {wanted}:
            found.append(f"while Kafka was away only {wanted} is right: {dict(Counter(during.values()))}")
        if self.killed and not any(self.sent_at[name] > back_at for name in during):
            found.append("no answer of the new intake before Kafka was back")
        if self.left:
            found.append(f"spilled hits were not replayed: {self.left}")
        return found

    def __str__(self) -> str:
        statuses = ", ".join(
            f"{count} x {status or 'none'}" for status, count in sorted(Counter(self.answers.values()).items())
        )
        kill = f" and kill -9 in the middle, {self.down[1] - self.down[0]:.1f} s down" if self.killed else ""
        rate = len(self.sent_at) / max(1.0, max(self.sent_at.values()) - min(self.sent_at.values()))
        return (
            f"Kafka away for {self.away[1] - self.away[0]:.0f} s, {self.on_failure}{kill}: {len(self.answers)} hits, {rate:.0f}/s; "
            f"answers {statuses}; {len(self.stored)} on hits-raw, {self.stored.total() - len(self.stored)} of them again"
        )


@dataclass(slots=True)
class _Intake:
    outage: Outage
    config: Config
    folder: Path

    @property
    def spilled(self) -> list[str]:
        """Names of the spilled segments."""
        return [path.name for path in (self.folder / "spill").rglob("*.spill")]


def _intake(outage: Outage, broker: EmbeddedBroker, folder: Path) -> _Intake:
    folder.mkdir()
    config = Config.model_validate(
        {
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": f"{folder.name}-"},
            "intake": {
                "listen": f"127.0.0.1:{free_port()}",
                "on_kafka_failure": outage.on_failure,
                "spill": {"folder": str(folder / "spill")},
            },
            "admin": {"listen": free_admin_listen()},
            "projects": {"shop": {"tokens": ["shop-token"]}},
        }
    )
    return _Intake(outage, config, folder)


async def _send(intake: _Intake, stop: asyncio.Event, rate: float) -> None:
    """Send each hit once, at most `rate` per second, without waiting for answers."""
    tasks: set[asyncio.Task[None]] = set()
    outage = intake.outage
    url = f"http://{intake.config.intake.listen}/track"

    async def post(session: aiohttp.ClientSession, name: str) -> None:
        outage.sent_at[name] = time.monotonic()
        try:
            async with session.post(url, data=hit(name), headers=_HEADERS) as answer:
                outage.answers[name] = answer.status
        except (aiohttp.ClientError, TimeoutError):
            outage.answers[name] = 0

    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)  # no queue in the client, so that each hit is sent when it is due
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        number = 0
        due = time.monotonic()
        while not stop.is_set():
            task = asyncio.create_task(post(session, f"hit-{number}"))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            due = max(due + 1 / rate, time.monotonic() - _CATCH_UP_SECONDS)
            await asyncio.sleep(due - time.monotonic())
        await asyncio.gather(*tasks)


async def _restart(intake: _Intake, role: Role, roles: contextlib.ExitStack) -> None:
    """Kill the intake with SIGKILL, start another process as the supervisor does, and wait until its port is open."""
    role.kill()
    killed_at = time.monotonic()
    next_instance = Role("intake", intake.config, intake.folder)
    roles.callback(next_instance.kill)
    await asyncio.to_thread(wait_until, lambda: listens(intake.config), "the port of the new intake")
    intake.outage.down = (killed_at, time.monotonic())


async def run_outages(outages: Sequence[Outage], seconds: float, rate: float, folder: Path) -> None:
    """Run an intake for each of `outages`, with `rate` hits per second. Kafka is away for `seconds` plus the restart of an intake.

    After some more traffic every topic is read; the results are stored in `outages`.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    stop = asyncio.Event()
    broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
    await asyncio.to_thread(broker.start)
    intakes = [_intake(outage, broker, folder / str(number)) for number, outage in enumerate(outages)]
    try:
        with contextlib.ExitStack() as roles:
            first = [roles.enter_context(running("intake", intake.config, intake.folder)) for intake in intakes]
            sending = [asyncio.create_task(_send(intake, stop, rate)) for intake in intakes]
            await asyncio.sleep(_EDGE_SECONDS)
            await asyncio.to_thread(broker.kill)
            began = time.monotonic()
            await asyncio.sleep(seconds / 2)
            killed = [(intake, role) for intake, role in zip(intakes, first, strict=True) if intake.outage.killed]
            await asyncio.gather(*(_restart(intake, role, roles) for intake, role in killed))
            await asyncio.sleep(seconds / 2)
            ended = time.monotonic()
            await asyncio.to_thread(broker.start)
            await asyncio.sleep(3)
            stop.set()
            await asyncio.gather(*sending)
            with contextlib.suppress(AssertionError):
                await asyncio.to_thread(
                    wait_until, lambda: not any(intake.spilled for intake in intakes), "empty spill logs", 300
                )
            for intake in intakes:
                intake.outage.away = (began, ended)
                intake.outage.left = intake.spilled
        for intake in intakes:
            topic = TopicNames(intake.config.kafka.topic_prefix).hits_raw
            intake.outage.stored = Counter(
                (record.key() or b"").decode().removeprefix("shop/")
                for record in read_topic(intake.config.kafka, topic)
            )
    finally:
        broker.stop()


def prove_outage(on_failure: OnFailure, kill: bool, seconds: float, rate: float, told: Callable[[str], None]) -> bool:
    """Return whether the guarantee held."""
    told(f"Kafka away for {seconds:.0f} s, {on_failure}{', kill -9 in the middle' if kill else ''}")
    with tempfile.TemporaryDirectory(prefix="hitrouter-outage-") as name:
        outage = Outage(on_failure, kill)
        asyncio.run(run_outages([outage], seconds, rate, Path(name)))
    print(outage)
    print("\n".join(f"  {problem}" for problem in outage.problems) or "  kept", flush=True)
    return not outage.problems


def main() -> int:
    """Return 0 if the guarantee held, otherwise 1."""
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
