"""The pure stages in one process: CPU-microseconds per hit of each, over hits that repeat as real traffic does.

One hit in ten is a duplicate. People, addresses, user agents and pages come again, ids and times do not; one hit in five comes from
a campaign, four in ten from elsewhere on the site. Senders use four `integrations`: none, all, all but one, and one with options.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet

from pipeline.codec.content import content_mark
from pipeline.codec.routed_hit import time_text
from pipeline.config import Config
from pipeline.process.garbage import reduce_gc_frequency
from pipeline.router.routing import Routing
from pipeline.stages.classify import RawHit, classify_raw
from pipeline.stages.deduplicate import DedupeResult, Deduplicator, dedupe_id
from pipeline.stages.seen_store import SeenStore

_BATCH = 2000
_POOL = 40_000
"""Bodies made beforehand; each is sent again with a new hitId."""
_CONNECTIONS = 12
_PEOPLE, _ADDRESSES, _AGENTS, _PAGES = 5_000, 8_000, 400, 3_000
_DUPLICATES = 10
"""Each tenth hit has the id of the one nine before it."""
_FIRST_MS = 1_795_515_330_000
_INTEGRATIONS: list[tuple[dict[str, Any] | None, int]] = [
    (None, 2),
    ({"All": True}, 5),
    ({"All": True, "c3": False}, 2),
    ({"All": False, "c4": True, "c5": {"campaign": "spring"}}, 1),
]
"""With their weights."""

STAGES = ("decode", "dedupe", "enrich and write", "decide", "address")
"""`decode` reads and checks a record; `enrich and write` derives and makes the routed hit; `address` says which topics get which bytes."""


def _databases(folder: Path) -> list[str]:
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, float_type="f64")
    for second in range(256):
        place = {
            "city": {"names": {"en": f"City {second}"}},
            "country": {"iso_code": "GB", "names": {"en": "United Kingdom"}},
            "location": {"latitude": 51.5, "longitude": -0.1, "time_zone": "Europe/London"},
        }
        writer.insert_network(IPSet([f"81.{second}.0.0/16"]), place)
    writer.to_db_file(str(folder / "city.mmdb"))
    return [str(folder / "city.mmdb")]


def _config(folder: Path) -> Config:
    connections: dict[str, Any] = {f"c{number}": {"destination": "Kafka"} for number in range(_CONNECTIONS)}
    for number in range(3):
        connections[f"c{number}"]["events"] = ["Completed *", "!Viewed Cart"]
    return Config.model_validate(
        {
            "enrich": {"geo": {"database": _databases(folder)}},
            "projects": {"shop": {}},
            "connections": connections,
        }
    )


def _bodies(separators: tuple[str, str]) -> list[bytes]:
    draw = random.Random(1)
    agents = [
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{draw.randrange(80, 130)}"
        f".0.{draw.randrange(9999)}.0 Safari/537.36"
        for _ in range(_AGENTS)
    ]
    bodies = []
    for _ in range(_POOL):
        page = f"https://shop.example/product/{draw.randrange(_PAGES)}"
        if draw.random() < 0.2:
            page += "?utm_source=newsletter&utm_medium=email&utm_campaign=spring"
        body = {
            "hitId": "HIT-ID",
            "sentAt": "SENT-AT",
            "event": {
                "name": draw.choice(["Viewed Page", "Viewed Product", "Completed Transaction"]),
                "user": {"userId": f"user-{draw.randrange(_PEOPLE)}"},
                "payload": {f"property{index}": f"value of property {index}" for index in range(8)},
            },
            "context": {
                "ip": f"81.{draw.randrange(_ADDRESSES) % 256}.{draw.randrange(32)}.7",
                "userAgent": draw.choice(agents),
                "page": {
                    "url": page,
                    "referrer": draw.choice(
                        ["https://www.google.com/", "https://shop.example/", "https://shop.example/", "", ""]
                    ),
                },
            },
        }
        integrations = draw.choices([value for value, _ in _INTEGRATIONS], [weight for _, weight in _INTEGRATIONS])[0]
        if integrations is not None:
            body["integrations"] = integrations
        bodies.append(json.dumps(body, separators=separators).encode())
    return bodies


def _records(bodies: list[bytes], start: int) -> list[tuple[bytes, bytes, list[tuple[str, bytes]]]]:
    """Key, value and headers of one batch: some twenty hits in each millisecond, sent up to a minute before."""
    records = []
    for number in range(start, start + _BATCH):
        hit_id = b"hit-%d" % (number - (9 if number % _DUPLICATES == 9 else 0))
        received_ms = _FIRST_MS + number // 20
        sent_at = time_text(received_ms - number * 7919 % 60_000).encode()
        value = bodies[number % _POOL].replace(b"HIT-ID", hit_id).replace(b"SENT-AT", sent_at)
        headers = [("project", b"shop"), ("received-at", b"%d" % received_ms), ("request-ip", b"203.0.113.9")]
        records.append((b"shop/" + hit_id, value, headers))
    return records


def measure_stages(separators: tuple[str, str], hits: int = 1_000_000) -> dict[str, float]:
    """CPU-microseconds per hit by stage, and `total`; duplicates count as hits."""
    reduce_gc_frequency()  # as the router does
    bodies = _bodies(separators)
    with tempfile.TemporaryDirectory() as name:
        routing = Routing(_config(Path(name)))
        spent = dict.fromkeys(STAGES, 0.0)
        deduplicator = Deduplicator()
        deduplicator.install({0: SeenStore(86_400_000)}, 1)
        clock = time.process_time
        for start in range(0, hits, _BATCH):
            records = _records(bodies, start)
            appended = [_FIRST_MS + start // 20] * _BATCH
            began = clock()
            raws = [
                classify_raw(value, key, headers, "hits-raw", 0, 0, 1, routing.plans) for key, value, headers in records
            ]
            decoded = clock()
            found = [raw for raw in raws if isinstance(raw, RawHit)]
            digests = [dedupe_id(raw.project, raw.hit_id) for raw in found]
            key_hashes = [raw.key_hash for raw in found]
            marks = [content_mark(raw.hit) for raw in found]
            claim = deduplicator.claim()
            dedupe_results = deduplicator.classify(claim, 0, digests, key_hashes, marks, appended)
            claim.commit()
            hits_once = [
                raw
                for raw, dedupe_result in zip(found, dedupe_results, strict=True)
                if dedupe_result is DedupeResult.NEW
            ]
            assert len(hits_once) == _BATCH - _BATCH // _DUPLICATES
            deduplicated = clock()
            enriched = [routing.enriched(raw, 0) for raw in hits_once]
            after_enrich = clock()
            decided = [routing.decided(raw, hit) for raw, hit in zip(hits_once, enriched, strict=True)]
            after_decide = clock()
            for routed in decided:
                routing.values(routed)
            after_address = clock()
            marks = (began, decoded, deduplicated, after_enrich, after_decide, after_address)
            for stage, first, last in zip(STAGES, marks, marks[1:], strict=False):
                spent[stage] += last - first
    costs = {stage: seconds / hits * 1e6 for stage, seconds in spent.items()}
    return {**costs, "total": sum(costs.values())}
