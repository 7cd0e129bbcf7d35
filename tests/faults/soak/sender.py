"""The front end of a soak: sends each hit until it is answered, and knows where it must arrive."""

from __future__ import annotations

import asyncio
import json
import random
import time

import aiohttp

from tests.faults.soak.verdict import Books

TOKEN = "soak-token"
ALWAYS = frozenset({"everything", "hook", "flaky"})
RARE = "rare"
_ANSWER_SECONDS = 8
_AGAIN_SECONDS = 0.5
_LAST_SECONDS = 60.0
_IN_FLIGHT = 2_000
_RARE_SECONDS = 45.0
"""Long enough for a transactional id of the soak's broker to expire between two hits."""
_TWICE = 0.05


async def send(books: Books, url: str, rate: float, draw: random.Random, stop: asyncio.Event) -> None:
    """Send `rate` hits per second until `stop`, then wait up to a minute for the last answers."""
    tasks: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    rare_at = due
    number = 0
    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, auth=aiohttp.BasicAuth(TOKEN, "")) as session:
        while not stop.is_set():
            now = time.monotonic()
            due = max(due + 1 / rate, now - 1.0)
            await asyncio.sleep(max(0.0, due - now))
            if len(tasks) >= _IN_FLIGHT:
                continue
            is_rare = now > rare_at + _RARE_SECONDS
            rare_at = now if is_rare else rare_at
            hit_id = f"hit-{number}"
            number += 1
            books.sent[hit_id] = ALWAYS | {RARE} if is_rare else ALWAYS
            event = {"name": "Rare" if is_rare else "Soak", "user": {"userId": f"user-{number % 211}"}}
            body = json.dumps({"hitId": hit_id, "event": event}).encode()
            for delay in (0.0, draw.choice((0.05, 1.0, 20.0))) if draw.random() < _TWICE else (0.0,):
                task = asyncio.create_task(_post(books, session, url, hit_id, body, delay))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(set(tasks), timeout=_LAST_SECONDS)
        for task in tasks:
            task.cancel()


async def _post(books: Books, session: aiohttp.ClientSession, url: str, hit_id: str, body: bytes, delay: float) -> None:
    await asyncio.sleep(delay)
    while True:
        try:
            async with session.post(url, data=body, headers={"content-type": "application/json"}) as answer:
                if answer.status == 204:
                    books.accepted.add(hit_id)
                    return
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass
        except RuntimeError:  # the session is closed: the run is over
            return
        await asyncio.sleep(_AGAIN_SECONDS)
