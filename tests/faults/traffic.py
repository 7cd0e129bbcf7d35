"""Generates traffic: hits over HTTP, repeated until answered, and hits that front ends write to Kafka directly."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from confluent_kafka import Producer

from tests.faults.checker import Sent

CONNECTIONS = {"all": None, "shop": ["shop"], "some": None}
"""Connections of the proof, with their projects; None means all."""
TOKENS = {"shop": "shop-token", "blog": "blog-token"}
_TWICE = 0.1
_DIRECT = 0.05
_LAST_SECONDS = 60.0
_UNANSWERED = 3_000
"""Maximum number of unanswered hits. Without a limit the sender would spend all its time on repeats."""
_CATCH_UP_SECONDS = 1.0
_AGAIN_SECONDS = (0.3, 4.0)


@dataclass(slots=True)
class Traffic:
    """Sends `rate` hits per second until `stop`; `sent` is the journal."""

    url: str
    bootstrap_servers: str
    rate: float
    draw: random.Random
    sent: list[Sent] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)
    answered_at: dict[str, float] = field(default_factory=dict)
    """Time of the first 204 by marker, in seconds since 1970."""
    seconds: float = 0.0
    """How long hits were sent. The actual rate is below `rate` if too many hits were unanswered at times."""

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop`, then wait until every hit is answered, for a minute at most."""
        producer = Producer(
            {"bootstrap.servers": self.bootstrap_servers, "acks": "all", "enable.idempotence": True, "log_level": 0}
        )
        tasks: set[asyncio.Task[None]] = set()
        began = paced_from = time.monotonic()
        number = 0
        timeout = aiohttp.ClientTimeout(total=8)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=256)) as session:
            while not stop.is_set():
                now = time.monotonic()
                paced_from = max(paced_from, now - number / self.rate - _CATCH_UP_SECONDS)
                while number < (now - paced_from) * self.rate and len(tasks) < _UNANSWERED:
                    hit = self._hit(number)
                    self.sent.append(hit)
                    if hit.dead or self.draw.random() < _DIRECT:
                        self._produce(producer, hit)
                    else:
                        delays = [0.0]
                        if self.draw.random() < _TWICE:
                            delays.append(self.draw.choice((0.0, 0.06, 0.5, 3.0, 12.0)))
                        for delay in delays:
                            task = asyncio.create_task(self._post(session, hit, delay))
                            tasks.add(task)
                            task.add_done_callback(tasks.discard)
                    number += 1
                producer.poll(0)
                await asyncio.sleep(0.01)
            self.seconds = time.monotonic() - began
            if tasks:
                await asyncio.wait(set(tasks), timeout=_LAST_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.to_thread(producer.flush, _LAST_SECONDS)

    def _hit(self, number: int) -> Sent:
        marker = f"m{number}"
        project = self.draw.choice(("shop", "blog"))
        if self.draw.random() < 0.005:
            return Sent(marker, b'{"broken": "%s"' % marker.encode(), project, frozenset(), dead=True)
        hit: dict[str, Any] = {
            "hitId": f"hit-{number}",
            "event": {
                "name": "Proof",
                "marker": marker,
                "user": {"userId": f"u{number % 97}"},
                "text": "x" * 300,
            },
            "context": {"page": {"url": "https://example.org/"}},
        }
        connections = {name for name, projects in CONNECTIONS.items() if projects is None or project in projects}
        chosen = self.draw.random()
        if chosen < 0.2:
            hit["integrations"] = {"some": False}
            connections.discard("some")
        elif chosen < 0.3:
            hit["integrations"] = {"All": False, "all": {"option": number}}
            connections &= {"all"}
        return Sent(marker, json.dumps(hit).encode(), project, frozenset(connections))

    def _produce(self, producer: Producer, hit: Sent) -> None:
        """Write the hit to hits-raw without a key, which contract.md, section 2 allows."""

        def report(error: object, _: object) -> None:
            if error is None:
                hit.stored = True

        producer.produce("hits-raw", hit.value, headers=[("project", hit.project.encode())], on_delivery=report)

    async def _post(self, session: aiohttp.ClientSession, hit: Sent, delay: float) -> None:
        await asyncio.sleep(delay)
        headers = {"content-type": "application/json"}
        auth = aiohttp.BasicAuth(TOKENS[hit.project], "")
        again = _AGAIN_SECONDS[0]
        while True:
            status = 0
            try:
                async with session.post(self.url, data=hit.value, headers=headers, auth=auth) as answer:
                    status = answer.status
            except (TimeoutError, aiohttp.ClientError, OSError):
                pass
            except RuntimeError:  # the run has ended
                return
            self.answers[status] = self.answers.get(status, 0) + 1
            if status == 204:
                hit.stored = True
                self.answered_at.setdefault(hit.marker, time.time())
                return
            if status not in (0, 503):
                return
            await asyncio.sleep(again * (0.5 + self.draw.random()))
            again = min(again * 2, _AGAIN_SECONDS[1])
