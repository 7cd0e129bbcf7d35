"""The pure stages in one process: CPU-microseconds per hit of each, over hits that repeat as real traffic does."""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet

from pipeline.codec.raw_record import RawHit, classify_raw
from pipeline.config import Config
from pipeline.router.routing import Routing
from pipeline.stages.deduplicate import Deduplicator, dedupe_id
from pipeline.stages.seen_store import SeenStore

_BATCH = 2000
_POOL = 40_000
"""Bodies made beforehand; each is sent again with a new hitId."""
_CONNECTIONS = 12
_PEOPLE, _ADDRESSES, _AGENTS, _PAGES = 5_000, 8_000, 400, 3_000

STAGES = ("decode", "dedupe", "enrich", "decide", "encode")


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


def _bodies() -> list[bytes]:
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
            "sentAt": "2026-11-24T10:15:30.123Z",
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
                    "referrer": draw.choice(["https://www.google.com/", "https://shop.example/", ""]),
                },
            },
            "integrations": {"All": True},
        }
        bodies.append(json.dumps(body).encode())
    return bodies


def measure_stages(hits: int = 1_000_000) -> dict[str, float]:
    """CPU-microseconds per hit by stage, and `total`; every hit is new."""
    bodies = _bodies()
    with tempfile.TemporaryDirectory() as name:
        config = _config(Path(name))
        routing = Routing(config)
        spent = dict.fromkeys(STAGES, 0.0)
        deduplicator = Deduplicator()
        deduplicator.install({0: SeenStore(86_400_000)})
        headers = [("project", b"shop"), ("received-at", b"1795515330123"), ("request-ip", b"203.0.113.9")]
        clock = time.process_time
        for start in range(0, hits, _BATCH):
            records = [
                (b"shop/hit-%d" % number, bodies[number % _POOL].replace(b"HIT-ID", b"hit-%d" % number))
                for number in range(start, start + _BATCH)
            ]
            began = clock()
            raws = [classify_raw(value, key, headers, "hits-raw", 0, 0, 1, routing.plans) for key, value in records]
            decoded = clock()
            digests = [dedupe_id(raw.project, raw.hit_id) for raw in raws if isinstance(raw, RawHit)]
            claim = deduplicator.claim()
            new = deduplicator.classify(claim, 0, digests, [1795515330123] * _BATCH)
            claim.commit()
            assert all(new) and len(new) == _BATCH
            deduplicated = clock()
            enriched = [routing.enriched(raw, 0) for raw in raws if isinstance(raw, RawHit)]
            after_enrich = clock()
            decided = [routing.decided(raw, hit) for raw, hit in zip(raws, enriched, strict=True)]  # type: ignore[arg-type]
            after_decide = clock()
            for routed in decided:
                routing.values(routed)
            after_encode = clock()
            marks = (began, decoded, deduplicated, after_enrich, after_decide, after_encode)
            for stage, first, last in zip(STAGES, marks, marks[1:], strict=False):
                spent[stage] += last - first
    costs = {stage: seconds / hits * 1e6 for stage, seconds in spent.items()}
    return {**costs, "total": sum(costs.values())}
