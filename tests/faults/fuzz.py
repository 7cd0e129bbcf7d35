"""Fuzzes the intake: every body gets an answer below 500 without an exception or a hang, and accepted hits are readable.

Bodies are hits, batches and messages with parts that are cut, doubled, spliced or overwritten. Each is sent as a whole request through
the protocol of the intake, to every kind of endpoint. The stored records are read with the code of the router.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import ProjectConfig
from pipeline.intake.admission import Admission
from pipeline.intake.answers import INTERNAL_ERROR
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.protocol import IntakeProtocol
from pipeline.intake.server_state import ServerState
from pipeline.intake.tokens import Tokens
from pipeline.stages.accept import Accepted
from pipeline.stages.classify import Dead, RawHit, classify_raw

SEED = 20261124
PATHS = ("/track", "/collect", "/ds/stream?a=1", "/v1/batch", "/v1/track")
_PROGRESS = 50_000
_HEAD = (
    f"Host: x\r\nContent-Type: application/json\r\n"
    f"Authorization: Basic {base64.b64encode(b'token:').decode()}\r\nContent-Length: "
)

_SEEDS = [
    {"hitId": "1", "event": {"name": "E", "user": {"userId": "u"}}, "integrations": {"All": True, "x": {"o": 1}}},
    {"sentAt": "2026-01-01T00:00:00Z", "projectId": "shop", "userId": 7, "event": {}, "context": {"ip": "1.2.3.4"}},
    {"batch": [{"type": "track", "event": "E", "userId": "u", "messageId": "m"}, {"type": "page", "anonymousId": "é"}]},
    {"type": "track", "event": "E", "userId": "u", "properties": {"a": [1, 2.5e300, None, "\ud83d\ude00"]}},
    {"event": {"user": {"anonymousId": "a"}, "deep": [[[[[[{"a": {"b": {}}}]]]]]]}, "user": "u"},
]
_SPLICES = [
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"null", b"NaN", b"1e999", b"-", b"\\ud800", b"\xff", b"\x00"),
    *(
        b'"hitId":',
        b'"event":',
        b'"userId":1e5',
        b'"integrations":',
        b"[" * 40,
        b"9" * 400,
        b'"\\u0000"',
        b"\xef\xbb\xbf",
    ),
]


def _mutated(draw: random.Random) -> bytes:
    body = bytearray(json.dumps(draw.choice(_SEEDS)).encode())
    for _ in range(draw.choice((0, 1, 1, 2, 3, 8))):
        place = draw.randrange(len(body) + 1)
        action = draw.randrange(4)
        if action == 0:
            body[place:place] = draw.choice(_SPLICES)
        elif action == 1:
            del body[place : place + draw.randrange(1, 12)]
        elif action == 2 and place < len(body):
            body[place] = draw.randrange(256)
        else:
            start = draw.randrange(len(body) + 1)
            body[place:place] = body[start : start + 30]
    return bytes(body)


def bodies(seed: int) -> Iterator[bytes]:
    """Yield different bodies without end."""
    draw = random.Random(seed)
    known: set[int] = set()
    while True:
        body = _mutated(draw)
        if hash(body) not in known:
            known.add(hash(body))
            yield body


class _Wire(asyncio.Transport):
    written: bytes = b""
    open = True

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.open = False


class _Kept:
    def __init__(self) -> None:
        self.hits: list[Accepted] = []

    def store(self, hit: Accepted, report: Any) -> bool:
        self.hits.append(hit)
        report(True)
        return True


@dataclass(slots=True)
class Fuzzed:
    """Counts of answers by path and status and of records by kind; `slowest` is the CPU time of one body at all paths, in seconds."""

    bodies: int = 0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


def fuzz(count: int, seed: int = SEED, told: Callable[[str], None] = lambda text: None) -> Fuzzed:
    """Send `count` bodies to every path. Raises AssertionError with the body that breaks a rule."""
    kept, found = _Kept(), Fuzzed()
    projects = {"shop": ProjectConfig(tokens=["token"], data_streams=["stream"])}
    state = ServerState(
        *(Endpoints(Tokens(projects)), kept, b"{}", ClientAddress([]), lambda address: address),
        admission=Admission(soon=lambda call: call()),
    )
    wire, protocol = _connected(state)
    for body in bodies(seed):
        began = time.process_time()
        for path in PATHS:
            if not wire.open:
                wire, protocol = _connected(state)
            wire.written = b""
            protocol.data_received(f"POST {path} HTTP/1.1\r\n{_HEAD}{len(body)}\r\n\r\n".encode() + body)
            status = int(wire.written[9:12] or 0)
            assert status in (200, 204, 400, 401), (path, status, body)
            assert INTERNAL_ERROR.message.encode() not in wire.written, (path, body)
            assert bool(kept.hits) == (status < 300) or (path, status) == ("/v1/batch", 200), (path, status, body)
            found.answers[path, status] += 1
            for record in kept.hits:
                found.records[_read(record, path, body)] += 1
            kept.hits.clear()
        found.slowest = max(found.slowest, time.process_time() - began)
        found.bodies += 1
        if not found.bodies % _PROGRESS:
            told(f"{found.bodies} bodies")
        if found.bodies == count:
            return found
    raise AssertionError("bodies end")


def _connected(state: ServerState) -> tuple[_Wire, IntakeProtocol]:
    wire, protocol = _Wire(), IntakeProtocol(state)
    protocol.connection_made(wire)
    return wire, protocol


def _read(record: Accepted, path: str, body: bytes) -> str:
    assert record.key.startswith(b"shop/"), (path, body)
    found = classify_raw(record.value, record.key, record.headers, "hits-raw", 0, 0, 1, {"shop"})
    if isinstance(found, Dead):
        assert path == "/v1/batch", (path, body, found)  # only a message of a batch
        return "dead"
    assert isinstance(found, RawHit), (path, body, found)
    return "hit"


def prove_fuzz(count: int) -> bool:
    """Return whether each of `count` distinct bodies is answered below 500, and all accepted hits are readable."""
    began = time.monotonic()
    try:
        found = fuzz(count, SEED, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    except Exception:
        print("fuzz: BROKEN")
        traceback.print_exc()
        return False
    print(
        f"fuzz (seed {SEED}, {time.monotonic() - began:.0f} s): {found.bodies} distinct bodies, each to {len(PATHS)} paths"
    )
    for path in PATHS:
        print(f"  {path}: " + ", ".join(f"{n} x {s}" for (p, s), n in sorted(found.answers.items()) if p == path))
    print(
        f"  of the stored records {found.records['hit']} are hits and {found.records['dead']} dead letters of a batch"
    )
    print(
        f"  slowest body {found.slowest * 1e3:.1f} ms of CPU at all paths; no exception, no 5xx, none unanswered\n  kept",
        flush=True,
    )
    return True
