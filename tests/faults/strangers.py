"""Attacks every door of the running product: no worker may end, a regular sender keeps its service, memory and topics stay bounded.

One project, the neighbour, sends steadily to /track and measures the latency, first alone and then during the attack. The attackers
know a projectId, a data stream and a public key of another project, which are public on a web page. They send mutated bodies, hits
with made-up names, floods of batches, words that a destination's firewall refuses, broken streams, and idle HTTP connections. One of
them writes to hits-raw directly.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from confluent_kafka import KafkaException, Producer

from pipeline.development.fault_server import FaultServer, Rule
from pipeline.operations.read_topic import read_topic
from tests.faults.delivering import start_fault_server
from tests.faults.fuzz import PATHS, bodies
from tests.faults.fuzz_route import hostile_hit
from tests.faults.soak.product import ROLES, Product

NEIGHBOUR_RATE = 20.0
STRANGERS_RATE = 150.0
"""Requests per second of all strangers together; more would leave too little CPU time for the product on two cores."""
_FIREWALL = "OR 1=1"
_TOKEN, _PUBLIC_KEY, _STREAM = "neighbour-token", "open-key", "open-stream"
_QUIET_SHARE, _QUIET_MOST_SECONDS = 0.1, 120.0
_LOOK_SECONDS = 5.0
_SILENT_CONNECTIONS = 300
_SETTLE_SECONDS = 180.0
_SLOWER_TIMES, _SLOWER_MS = 2.0, 2.0
"""The neighbour's median latency may double, plus 2 ms for the noise of a shared machine."""
_MEMORY_TIMES, _MEMORY_MB = 1.2, 30.0
_WARM_SECONDS = 600.0
"""A shorter run cannot distinguish growth from the warm-up of a process."""
_BYTES_PER_ID = 64.0
"""Maximum memory of a router per hit in the window: 32 bytes, and twice that while a table grows."""
_BYTES_PER_ACCEPTED = 8.0
"""Maximum size of all topics per byte of accepted bodies: hits-raw, two deliveries topics, dead letters, ledger, ids."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Strangers:
    """Result of a run. `answers` are those to the strangers, by path and status; latencies are the neighbour's; memory is in MB."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    accepted_bytes: int = 0
    quiet_ms: list[float] = field(default_factory=list)
    beside_ms: list[float] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    memory_mb: dict[str, list[float]] = field(default_factory=dict)
    topics_mb: float = 0.0
    problems: list[str] = field(default_factory=list)


class Siege:
    """One run in a temporary folder."""

    def __init__(self, seconds: float, seed: int, say: Say) -> None:
        self.seconds = seconds
        self.seed = seed
        self.say = say
        self.found = Strangers()
        self.folder = Path(tempfile.mkdtemp(prefix="hitrouter-strangers-"))
        self._server, self._stop_server = start_fault_server()
        self._server.replace([Rule(contains=_FIREWALL, status=403)])  # type: ignore[call-arg]
        self._server.is_counted = lambda request_id: request_id.startswith(
            ("good-", "first")
        )  # strangers send more than it can count
        self.product = Product(
            self.folder, {"hook": f"{self._server.url}/hook", "rare": f"{self._server.url}/rare"}, 7200
        )
        plan = self.folder / "plan.json"
        plan.write_text(
            json.dumps({"properties": {"name": {"type": "string"}}, "additionalProperties": {"type": "object"}})
        )
        self.product.settings["projects"] = {
            "neighbour": {"tokens": [_TOKEN]},
            "open": {
                "public_keys": [_PUBLIC_KEY],
                "data_streams": [_STREAM],
                "tracking_plan": {"schema": str(plan), "on_violation": "warn"},
            },
        }
        self.product.write()
        self._url = f"http://{self.product.settings['intake']['listen']}"
        self._accepted: set[str] = set()
        self._stop = asyncio.Event()

    @property
    def server(self) -> FaultServer:
        """The server that the webhooks deliver to."""
        return self._server

    async def execute(self) -> Strangers:
        """Execute the run. The logs stay in `folder` if there are problems."""
        self.product.start()
        try:
            await self._serving()
            before = {role: self.product.pids(role) for role in ROLES}
            quiet = min(_QUIET_MOST_SECONDS, self.seconds * _QUIET_SHARE)
            await self._neighbour(self.found.quiet_ms, quiet)
            self.say(f"alone: median {statistics.median(self.found.quiet_ms):.1f} ms")
            besiegers = [asyncio.create_task(task) for task in self._besiegers()]
            watching = asyncio.create_task(self._watch())
            await self._neighbour(self.found.beside_ms, self.seconds)
            self._stop.set()
            await asyncio.wait([watching, *besiegers], timeout=30)
            for task in besiegers:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    self.found.problems.append(f"an attack failed with an error, so the run is inconclusive: {error!r}")
                task.cancel()
            await self._settle()
            after = {role: self.product.pids(role) for role in ROLES}
            if before != after:
                self.found.problems.append(f"a worker has ended: {before} became {after}")
            await asyncio.to_thread(self._judge)
            code = await asyncio.to_thread(self.product.stop)
            if code != 0:
                self.found.problems.append(f"`up` ended with exit code {code}")
        finally:
            if self.product.is_running:
                self.product.stop()
            self._stop_server()
        return self.found

    # The neighbour ---------------------------------------------------------------------------------------------------

    async def _serving(self) -> None:
        deadline = time.monotonic() + 120
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline:
                with contextlib.suppress(aiohttp.ClientError):
                    if await self._send(session, "first") == 204 and all(map(self.product.pids, ROLES)):
                        self._accepted.add("first")
                        return
                await asyncio.sleep(0.5)
        raise AssertionError(f"nothing serves after 120 s; logs are in {self.folder}")

    async def _send(self, session: aiohttp.ClientSession, hit_id: str) -> int:
        body = json.dumps({"hitId": hit_id, "event": {"name": "Steady", "user": {"userId": f"u{hash(hit_id) % 50}"}}})
        headers = {"content-type": "application/json", "authorization": _basic(_TOKEN)}
        async with session.post(f"{self._url}/track", data=body, headers=headers) as answer:
            return answer.status

    async def _neighbour(self, latencies_ms: list[float], seconds: float) -> None:
        """Send hits at a steady rate, each on its own HTTP connection as far as the client's pool allows."""
        tasks: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:

            async def one(hit_id: str) -> None:
                sent = time.monotonic()
                try:
                    status = await self._send(session, hit_id)
                except (aiohttp.ClientError, TimeoutError):
                    status = 0
                latencies_ms.append((time.monotonic() - sent) * 1e3)
                if status == 204:
                    self._accepted.add(hit_id)
                else:
                    self.found.refused[status] += 1

            while (passed := time.monotonic() - began) < seconds:
                # Without a dot, since a webhook gets a hash of an id with a dot.
                task = asyncio.create_task(one(f"good-{len(self._accepted)}-{round(passed * 1000)}"))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await asyncio.sleep(1 / NEIGHBOUR_RATE)
            if tasks:
                await asyncio.wait(tasks)

    # The strangers ---------------------------------------------------------------------------------------------------

    def _besiegers(self) -> list[Awaitable[None]]:
        requests = [self._mutated, self._made_up, self._words, self._floods]
        share = STRANGERS_RATE / len(requests)
        return [
            *(self._requests(kind(random.Random(self.seed + number)), share) for number, kind in enumerate(requests)),
            self._streams(random.Random(self.seed + 10)),
            self._silence(),
            asyncio.to_thread(self._front_end, random.Random(self.seed + 11)),
        ]

    async def _requests(self, wanted: Iterator[tuple[str, bytes, dict[str, str]]], rate: float) -> None:
        """Post each (path, body, headers), `rate` per second."""
        tasks: set[asyncio.Task[None]] = set()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:

            async def one(path: str, body: bytes, headers: dict[str, str]) -> None:
                try:
                    async with session.post(self._url + path, data=body, headers=headers) as answer:
                        status = answer.status
                except (aiohttp.ClientError, TimeoutError, OSError):
                    status = 0
                self.found.answers[path.partition("?")[0], status] += 1
                if status < 300:
                    self.found.accepted_bytes += len(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)

            for path, body, headers in wanted:
                if self._stop.is_set():
                    break
                if len(tasks) < 200:
                    task = asyncio.create_task(one(path, body, headers))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await asyncio.sleep(1 / rate)
            if tasks:
                await asyncio.wait(tasks, timeout=20)

    def _mutated(self, draw: random.Random) -> Iterator[tuple[str, bytes, dict[str, str]]]:
        for body in bodies(self.seed):
            path = draw.choice(PATHS).replace("/ds/stream", f"/ds/{_STREAM}")
            yield path, body, {"content-type": "application/json", "authorization": _basic(_PUBLIC_KEY)}

    def _made_up(self, draw: random.Random) -> Iterator[tuple[str, bytes, dict[str, str]]]:
        for number in range(1_000_000_000):
            hit = {"projectId": "open", **hostile_hit(draw, number)}
            yield "/collect", json.dumps(hit).encode(), {"content-type": "text/plain", "origin": "https://page.example"}

    def _words(self, draw: random.Random) -> Iterator[tuple[str, bytes, dict[str, str]]]:
        """Yield hits, some with words that the firewall of a destination refuses."""
        for number in range(1_000_000_000):
            text = _FIREWALL if draw.random() < 0.05 else "harmless"
            event = {"name": "Search", "query": text, "user": {"anonymousId": f"a{number % 97}"}}
            body = json.dumps({"projectId": "open", "hitId": f"words-{number}", "event": event}).encode()
            yield "/collect", body, {"content-type": "text/plain"}

    def _floods(self, draw: random.Random) -> Iterator[tuple[str, bytes, dict[str, str]]]:
        """Yield small gzip bodies that would expand to many large records."""
        while True:
            messages = [{"type": "track", "event": "F", "userId": "u"}] * draw.choice((1, 50, 2_000, 5_000))
            batch = {"context": {"page": {"title": "x" * draw.choice((0, 100, 20_000))}}, "batch": messages}
            headers = {"content-encoding": "gzip", "authorization": _basic(_PUBLIC_KEY)}
            yield "/v1/batch", gzip.compress(json.dumps(batch).encode(), 1), headers

    async def _streams(self, draw: random.Random) -> None:
        """Send bytes that are not HTTP, endless heads, and truncated bodies."""
        host, _, port = self.product.settings["intake"]["listen"].rpartition(":")
        head = b"POST /track HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n"
        while not self._stop.is_set():
            with contextlib.suppress(OSError, TimeoutError):
                _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 5)
                writer.write(
                    draw.choice(
                        (
                            draw.randbytes(draw.randrange(1, 4_000)),
                            head,
                            head + b"\r\n{",
                            head * 300,
                            b"GET / HTTP/9.9\r\n\r\n",
                        )
                    )
                )
                await asyncio.sleep(draw.choice((0.0, 0.2, 2.0)))
                writer.close()
            await asyncio.sleep(0.05)

    async def _silence(self) -> None:
        """Open HTTP connections that send nothing, and reopen them when they are closed."""
        host, _, port = self.product.settings["intake"]["listen"].rpartition(":")

        async def one() -> None:
            while not self._stop.is_set():
                with contextlib.suppress(OSError, TimeoutError):
                    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 5)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 20)
                    writer.close()
                await asyncio.sleep(1)

        await asyncio.gather(*(one() for _ in range(_SILENT_CONNECTIONS)))

    def _front_end(self, draw: random.Random) -> None:
        """Write to hits-raw directly, with arbitrary keys, headers and sizes."""
        producer = Producer({"bootstrap.servers": self.product.broker.bootstrap_servers, "log_level": 0})
        number = 0
        while not self._stop.is_set():
            number += 1
            hit = hostile_hit(draw, number)
            hit["hitId"] = f"front-{number}"
            if draw.random() < 0.02:
                hit["event"]["x"] = "x" * draw.choice((300_000, 900_000))
            value = draw.choice((json.dumps(hit).encode(), draw.randbytes(60), b"\xc3\x01" + draw.randbytes(90), b""))
            headers = [("project", draw.choice((b"open", b"nobody", b"\xff")))]
            with contextlib.suppress(KafkaException):  # larger than Kafka takes
                producer.produce("hits-raw", value, draw.choice((None, b"open/x", draw.randbytes(8))), headers=headers)
                self.found.accepted_bytes += len(value)
            producer.poll(0)
            time.sleep(0.1)
        producer.flush(20)

    # What the product shows ------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Record the memory of each role."""
        told = time.monotonic()
        while not self._stop.is_set():
            for role in ROLES:
                for pid in self.product.pids(role):
                    with contextlib.suppress(OSError):
                        self.found.memory_mb.setdefault(role, []).append(_memory_mb(pid))
            if time.monotonic() > told + 60:
                told = time.monotonic()
                memory = ", ".join(f"{role} {held[-1]:.0f} MB" for role, held in self.found.memory_mb.items())
                self.say(
                    f"{len(self.found.beside_ms)} neighbourly hits, {self.found.answers.total()} of strangers; {memory}"
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _LOOK_SECONDS)

    async def _settle(self) -> None:
        """Wait until every hit of the neighbour has been delivered."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            if self._accepted <= self._server.taken.keys():
                return
            await asyncio.sleep(1)
        lost = len(self._accepted - self._server.taken.keys())
        self.found.problems.append(f"{lost} of the neighbour's hits did not arrive within {_SETTLE_SECONDS:.0f} s")

    def _judge(self) -> None:
        found = self.found
        copies = Counter(
            json.loads(record.value() or b"{}").get("hitId")
            for record in read_topic(self.product.config.kafka, "deliveries-everything")
        )
        hits = copies.total()
        doubled = [hit_id for hit_id in self._accepted if copies[hit_id] != 1]
        if doubled:
            found.problems.append(f"{len(doubled)} of the neighbour's hits are not once on their topic: {doubled[:3]}")
        if found.refused:
            found.problems.append(f"the neighbour was refused: {dict(found.refused)}")
        alone, beside = statistics.median(found.quiet_ms), statistics.median(found.beside_ms)
        if beside > alone * _SLOWER_TIMES + _SLOWER_MS:
            found.problems.append(f"the neighbour's median rose from {alone:.1f} to {beside:.1f} ms")
        for role, held in found.memory_mb.items() if self.seconds >= _WARM_SECONDS else ():
            third = max(1, len(held) // 3)
            early, late = max(held[:third]), max(held[-third:])
            ids_mb = hits * _BYTES_PER_ID / 1e6 if role == "route" else 0.0
            if late > early * _MEMORY_TIMES + _MEMORY_MB + ids_mb:
                found.problems.append(f"{role}: memory grows, from {early:.0f} to {late:.0f} MB")
        found.topics_mb = sum(path.stat().st_size for path in (self.folder / "kafka").rglob("*.log")) / 1e6
        bound = (found.accepted_bytes * _BYTES_PER_ACCEPTED) / 1e6 + 20
        if found.topics_mb > bound:
            found.problems.append(f"topics hold {found.topics_mb:.0f} MB; {bound:.0f} MB are their bound")
        strange = {where: n for where, n in found.answers.items() if where[1] >= 500 and where[1] != 503}
        if strange:
            found.problems.append(f"answers that no stranger should get: {strange}")
        log = self.product.log_text()
        found.problems += [line for line in log.splitlines() if "exit code" in line or "Traceback" in line][:5]
        code, _, _ = self.product.ledger()
        if code != 0:
            found.problems.append(f"`hitrouter ledger` exits with {code}")


def _basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"{token}:".encode()).decode()


def _memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def prove_strangers(seconds: float, seed: int, say: Say) -> bool:
    """Run the attack, print the result, and return whether it had no effect on the neighbour and the workers."""
    began = time.monotonic()
    siege = Siege(seconds, seed, say)
    found = asyncio.run(siege.execute())
    print(f"strangers (seed {seed}, {time.monotonic() - began:.0f} s): {found.answers.total()} requests")
    for path in sorted({path for path, _ in found.answers}):
        print(f"  {path}: " + ", ".join(f"{n} x {s}" for (p, s), n in sorted(found.answers.items()) if p == path))
    for name, latencies_ms in (("alone", found.quiet_ms), ("beside them", found.beside_ms)):
        ordered = sorted(latencies_ms)
        print(
            f"  the neighbour {name}: {len(ordered)} hits, median {statistics.median(ordered):.1f} ms, "
            f"p99 {ordered[int(len(ordered) * 0.99)]:.1f} ms"
        )
    for role, held in found.memory_mb.items():
        print(f"  {role}: {held[0]:.0f} MB at first, {max(held):.0f} MB at most, {held[-1]:.0f} MB at last")
    print(f"  topics {found.topics_mb:.0f} MB for {found.accepted_bytes / 1e6:.0f} MB of accepted bodies")
    print("\n".join(f"  {problem}" for problem in found.problems[:20]) or "  kept", flush=True)
    if found.problems:
        print(f"  logs are in {siege.folder}")
    else:
        shutil.rmtree(siege.folder, ignore_errors=True)
    return not found.problems
