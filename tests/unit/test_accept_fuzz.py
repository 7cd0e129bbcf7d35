"""Whatever a client sends: an outcome, never an exception; and what is accepted is readable for the router.

HITROUTER_FUZZ is the number of bodies (default 3,000); each goes to every dialect, so 200,000 are a million readings:

    HITROUTER_FUZZ=200000 .venv/bin/python -m pytest tests/unit/test_accept_fuzz.py
"""

from __future__ import annotations

import json
import os
import random
from functools import partial

from pipeline.codec.raw_record import Dead, RawHit, Rekey, classify_raw
from pipeline.stages.accept import (
    Accepted,
    Refusal,
    Request,
    accept_batch,
    accept_collected,
    accept_data_stream,
    accept_hit,
    accept_message,
)

BODIES = int(os.environ.get("HITROUTER_FUZZ", "3000"))
SEED = 20261124

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


def mutated(draw: random.Random) -> bytes:
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


def test_no_body_breaks_the_intake() -> None:
    draw = random.Random(SEED)
    request = Request("shop", "/x", "application/json", 1_700_000_000_000, "203.0.113.9", "agent/1", "a=1&hitId=q")
    project_of = {"key": "shop"}.get
    dialects = [
        accept_hit,
        partial(accept_collected, projects={"shop"}),
        accept_data_stream,
        partial(accept_batch, project_of=project_of),
        partial(accept_message, project_of=project_of, kind="track"),
    ]
    seen = {"accepted": 0, "refused": 0, "dead": 0}
    for _ in range(BODIES):
        body = mutated(draw)
        for accept in dialects:
            outcome = accept(body, request, bytes)
            if isinstance(outcome, Refusal):
                assert outcome.status in (400, 401), outcome
                seen["refused"] += 1
                continue
            for record in [outcome] if isinstance(outcome, Accepted) else outcome:
                assert record.key.startswith(b"shop/")
                found = classify_raw(record.value, record.key, record.headers, "hits-raw", 0, 0, 1, {"shop"})
                assert isinstance(found, RawHit | Dead), (body, found)
                assert not isinstance(found, Rekey)
                if isinstance(found, Dead):
                    assert accept is dialects[3], (body, found)  # only a message of a batch
                    seen["dead"] += 1
                seen["accepted"] += 1
    assert min(seen.values()) > BODIES / 500, seen
