"""Generates the sample traffic of the demo: realistic hits, duplicates, disabled integrations and invalid hits.

The generator is seeded, so the same arguments return the same hits.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from uuid import UUID

_PAGES = ("/", "/shoes", "/shoes/runner-2", "/cart", "/checkout", "/blog/exact-once")
_EVENTS = ("Viewed Page", "Viewed Product", "Added Product", "Completed Transaction", "Signed Up")


@dataclass(frozen=True, slots=True)
class SampleHit:
    """One request: the project whose token is used ("" for a wrong token), the body, and the expected status."""

    project: str
    body: bytes
    expected_status: int


def sample_hits(count: int, run: str, seed: int = 1) -> list[SampleHit]:
    """Return `count` new hits, duplicates of about every tenth, and a few that must be refused. Ids differ for each `run`."""
    draw = random.Random(f"{seed}-{run}")
    hits: list[SampleHit] = []
    for _ in range(count):
        project = draw.choice(("shop", "shop", "blog"))
        hit = SampleHit(project, _body(draw, project), 204)
        hits.append(hit)
        if draw.random() < 0.1:
            hits.insert(draw.randrange(len(hits)), hit)
    hits += [
        SampleHit("", hits[0].body, 401),
        SampleHit("shop", b'{"event": {"name": "No identity"}}', 400),
        SampleHit("shop", b'{"event": {"user": {"userId": "1"}}, "integrations": {"Webhook": "false"}}', 400),
        SampleHit("blog", b"not JSON", 400),
        SampleHit("blog", b'{"event": "' + b"x" * 66_000 + b'"}', 400),
    ]
    return hits


def _body(draw: random.Random, project: str) -> bytes:
    hit: dict[str, object] = {
        "hitId": str(UUID(int=draw.getrandbits(128), version=4)),
        "sentAt": "2026-11-24T10:15:30.123Z",
        "event": {
            "name": draw.choice(_EVENTS),
            "user": {"anonymousId": f"visitor-{draw.randrange(60)}"},
            "value": round(draw.random() * 200, 2),
        },
        "context": {
            "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0",
            "page": {"url": f"https://{project}.example{draw.choice(_PAGES)}"},
        },
    }
    chosen = draw.random()
    if chosen < 0.15:
        hit["integrations"] = {"Webhook": False}
    elif chosen < 0.25:
        hit["integrations"] = {"All": False, "Kafka": True}
    elif chosen < 0.35:
        hit["integrations"] = {"crm": {"list": "newsletter"}}
    return json.dumps(hit).encode()
