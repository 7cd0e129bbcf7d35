"""Fuzzes the router: no batch of raw records ends a route worker, and every record is accounted for.

Batches of hostile records (made-up names, paths and headers, sizes up to Kafka's limit) go through the code of the route role. The
producer is that of librdkafka without a broker, so it refuses the same records. Some records cause an unexpected error in the code,
or an output record that is too large. These must become dead letters, and all others must be routed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from faust.types import TP

from pipeline.codec.ledger_entry import LedgerEntry, decode_ledger_entry
from pipeline.codec.raw_record import Headers, partition_of
from pipeline.config import Config
from pipeline.errors import ContentError, RecordTooLarge
from pipeline.kafka.transport.batch import Batch, BatchConsumer, Outputs
from pipeline.kafka.transport.batch_limit import BatchLimit
from pipeline.kafka.transport.faulty import FaultyRecords
from pipeline.operations.ledger_sums import sum_ledger
from pipeline.router import prepare
from pipeline.router.prepare import Preparer
from pipeline.router.route_batch import route_batch
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_store import SeenStore

SEED = 20261127
ENTRY_BYTES = 256 * 1024
PARTITIONS = 3
_PROGRESS = 1_000
_BUG = "HIT-THAT-MEETS-A-BUG"
_PROJECTS = ("free", "warn", "strip", "quarantine")
_CONNECTIONS = {
    "all": {"destination": "Kafka"},
    "avro": {"destination": "Kafka", "format": "avro"},
    "fewer": {"destination": "Kafka", "drop_fields": ["event.user.x", "event.x"]},
    "when": {"destination": "Kafka", "when": "event.value > 0 || context.bot"},
    "analytics": {"destination": "Google Analytics", "settings": {"measurement_id": "G-1", "api_secret": "s"}},
}
_TEXTS = (
    "",
    "a",
    "others",
    "é" * 70,
    "\u202e\x1b[2J",
    "😀",
    "\u2028",
    "\x00",
    "All",
    "analytics",
    "x" * 129,
    "avro",
    "1e999",
)


def hostile_hit(draw: random.Random, number: int) -> dict[str, Any]:
    """Return a hit with made-up names, paths, texts or numbers; `number` is its hitId."""
    kind = draw.randrange(12)
    event: dict[str, Any] = {"name": draw.choice(("E", *_TEXTS)), "user": {"userId": draw.choice(("u", *_TEXTS))}}
    hit: dict[str, Any] = {"hitId": f"{number}", "event": event}
    if kind in (0, 1):
        some = draw.choice((3, 300, 1950))
        hit["integrations"] = {f"{number}{draw.choice(_TEXTS)}{k}": draw.choice((True, False, {})) for k in range(some)}
    elif kind == 2:
        hit["integrations"] = {draw.choice(_TEXTS): draw.choice((True, None, 7, {"o": "é" * 500})) for _ in range(5)}
    elif kind == 3:
        event |= {f"{number}{draw.choice(_TEXTS)}{'é' * draw.choice((1, 900))}": "no number" for _ in range(3)}
    elif kind == 4:
        inner: Any = draw.choice(_TEXTS)
        for _ in range(draw.choice((3, 27, 40))):
            inner = {f"{number}{draw.choice(_TEXTS)}": inner} if draw.randrange(2) else [inner]
        event["x"] = inner
    elif kind == 5:
        hit["context"] = {name: draw.choice(_TEXTS) * draw.choice((1, 500)) for name in ("ip", "userAgent", "page")}
    elif kind == 6:
        hit["sentAt"] = draw.choice(_TEXTS) * 20
        hit[draw.choice(_TEXTS) + f"{number}"] = 1
    elif kind == 7:
        del event["user"]
    elif kind == 8:
        event["value"] = draw.choice((10**400, -1, 1e300))
    return hit


class _Record:
    """A record of hits-raw with the interface of confluent_kafka."""

    def __init__(self, offset: int, partition: int, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]):
        self._fields = (offset, partition, key, value, list(headers))

    def offset(self) -> int:
        """See Message; the same for the methods below."""
        return self._fields[0]

    def topic(self) -> str:
        return "hits-raw"

    def partition(self) -> int:
        return self._fields[1]

    def key(self) -> bytes:
        return self._fields[2]

    def value(self) -> bytes:
        return self._fields[3]

    def headers(self) -> list[tuple[str, bytes]]:
        return self._fields[4]

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_795_515_330_000 + self._fields[0]


class _Partition:
    """Generates the records of one partition."""

    def __init__(self, number: int, draw: random.Random) -> None:
        self.tp = TP("hits-raw", number)
        self._draw = draw
        self.records: list[_Record | None] = []
        """By offset; None after the commit, because a million records do not fit into memory."""

    def add(self, count: int, whole: bool) -> None:
        """Add `count` records. With `whole`, some can only come from a front end, such as very large ones."""
        for _ in range(count):
            self.records.append(self._record(len(self.records), whole))

    def _record(self, offset: int, whole: bool) -> _Record:
        draw = self._draw
        project = draw.choice(_PROJECTS)
        number = offset * PARTITIONS + self.tp.partition
        hit = hostile_hit(draw, number)
        while partition_of(f"{project}/{hit['hitId']}".encode(), PARTITIONS) != self.tp.partition:
            hit["hitId"] += "x"
        headers = [("project", project.encode())]
        odd = draw.randrange(40) if whole else 40
        if odd == 0:
            hit["event"]["x"] = "x" * draw.choice((600_000, 990_000, 999_900))
        elif odd == 1:
            headers.append(("trace", b"x" * (999_995 - len(json.dumps(hit)))))  # too large when it is written back
        elif odd == 2:
            hit["event"]["note"] = _BUG
        elif odd == 3:
            headers.append(("refused", json.dumps([draw.choice(_TEXTS) * 90 + f"{number}", "m" * 9_000, "p"]).encode()))
        elif odd == 4:
            headers += [("replay-to", draw.choice(("all", "é" * 9_000)).encode()), ("replay-id", b"r" * 9_000)]
        elif odd == 5:
            headers[0] = ("project", draw.choice(_TEXTS).encode() * 90)
        value = json.dumps(hit, ensure_ascii=draw.randrange(2) == 0).encode()
        if odd == 6:
            value = value[: draw.randrange(len(value))]
        elif odd == 7:
            value = bytes(draw.randrange(256) for _ in range(40))
        elif odd == 8:
            value = b"not a hit " * 99_995  # its dead letter is too large
        key = f"{project}/{hit['hitId']}".encode() if odd not in (1, 9) else b"k" * draw.choice((1, 999_000))
        return _Record(offset, self.tp.partition, key, value, headers)


class _Bounds:
    """librdkafka's producer without a broker. Refuses records that are too large, and keeps the others of a transaction."""

    def __init__(self) -> None:
        self._producer = Producer(
            {"bootstrap.servers": "127.0.0.1:1", "log_level": 0, "queue.buffering.max.kbytes": 2_000_000}
        )
        self.queued: list[tuple[str, bytes | None, Headers]] = []

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int = -1,
        headers: Headers | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        try:
            self._producer.produce(topic, value, key, -1, None, None, timestamp_ms, headers)
        except KafkaException as error:
            assert error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE, error
            raise RecordTooLarge(topic) from error
        self.queued.append((topic, value, headers or []))

    def produce_all(self, topic: str, records: Iterable[tuple[bytes, bytes]], headers: Headers | None = None) -> None:
        for value, key in records:
            self.produce(topic, value, key, headers=headers)

    def forget(self) -> None:
        """Drop what is queued."""
        self._producer.purge()
        self._producer.poll(0)
        self.queued = []


@dataclass(slots=True)
class FuzzedRoute:
    """Counts of batches, commits and records by outcome (`found`); sizes are in bytes."""

    batches: int = 0
    committed: int = 0
    found: Counter[str] = field(default_factory=Counter)
    largest_entry: int = 0
    largest_headers: int = 0


class _Worker:
    """A route worker without Kafka. Reads each batch from the committed offsets, as after an abort."""

    def __init__(self, folder: Path, seed: int, told: FuzzedRoute) -> None:
        plan = folder / "plan.json"
        plan.write_text(
            json.dumps({"additionalProperties": {"type": ["number", "object"]}, "properties": {"name": {}}})
        )
        projects = {
            name: {} if name == "free" else {"tracking_plan": {"schema": str(plan), "on_violation": name}}
            for name in _PROJECTS
        }
        config = Config.model_validate({"projects": projects, "connections": _CONNECTIONS})
        deduplicator = Deduplicator()
        deduplicator.install({n: SeenStore(86_400_000) for n in range(PARTITIONS)}, PARTITIONS)
        self._preparer = Preparer(config, deduplicator)
        self._draw = random.Random(seed)
        self._partitions = [_Partition(n, self._draw) for n in range(PARTITIONS)]
        self._committed = {partition.tp: 0 for partition in self._partitions}
        self._limit = BatchLimit(10_000)
        self._faulty = FaultyRecords()
        self._bounds = _Bounds()
        self.entries: list[LedgerEntry] = []
        self.told = told

    async def batch(self, whole: bool) -> None:
        """Add some records, and route until all are committed."""
        for partition in self._partitions:
            partition.add(self._draw.choice((0, 1, 5, 20)), whole)
        tries = 0
        while (batch := self._read()) is not None:
            tries += 1
            assert tries < 1_000, "the batch is read again for ever"
            await route_batch(self._preparer, "ledger", batch, cast(BatchConsumer, self), self._faulty)
        for partition in self._partitions:
            for offset in range(len(partition.records) - 1, -1, -1):
                if partition.records[offset] is None:
                    break
                partition.records[offset] = None
        self.told.batches += 1
        assert not self._faulty

    def _read(self) -> Batch | None:
        room = self._limit.records or 10_000
        records: dict[TP, list[Any]] = {}
        for partition in self._draw.sample(self._partitions, PARTITIONS):
            found = partition.records[self._committed[partition.tp] :][:room]
            room -= len(found)
            if found:
                records[partition.tp] = found
        return Batch.of(0, cast(dict[TP, list[Message]], records))

    @asynccontextmanager
    async def transaction(self, batch: Batch) -> AsyncIterator[Outputs]:
        """See BatchConsumer."""
        outputs = Outputs(self._bounds)
        self._bounds.forget()
        try:
            yield outputs
        except BaseException:
            outputs.run_aborted()
            raise
        self._committed |= batch.next_offsets
        self._limit.committed(0.01)
        outputs.run_committed()
        self._look(self._bounds.queued, batch)

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """See BatchConsumer."""
        self.told.found["batches halved"] += 1
        self._limit.content_failed(len(batch))

    def _look(self, queued: Sequence[tuple[str, bytes | None, Headers]], batch: Batch) -> None:
        told, entries = self.told, []
        told.committed += 1
        for topic, value, headers in queued:
            size = sum(len(name) + len(text or b"") for name, text in headers)
            if topic == "dead-letters":
                told.found["dead letters"] += 1
                told.found["dead letters cut"] += "value-bytes" in dict(headers)
                told.largest_headers = max(told.largest_headers, size)
                assert size < 8_000, headers
            elif topic == "ledger":
                told.largest_entry = max(told.largest_entry, len(value or b""))
                assert len(value or b"") <= ENTRY_BYTES
                entries.append(decode_ledger_entry(value or b""))
            elif topic.startswith("deliveries-"):
                told.found["deliveries"] += 1
        counts = sum((entry.counts for entry in entries), Counter())
        outcomes: Counter[str] = Counter()
        for e, count in counts.items():
            if not e.connection:
                outcomes[e.outcome] += count
        told.found.update(outcomes)
        settled = sum(outcomes[name] for name in ("unique", "duplicate", "dead", "rekeyed", "replay_skipped"))
        replayed = sum(count for e, count in counts.items() if e.outcome == "replayed")
        assert settled + replayed == len(batch), (outcomes, len(batch))
        ledger = sum_ledger(entries, topic_only=_CONNECTIONS)
        assert ledger.hits.adds_up and not ledger.problems, ledger.problems


class _Bug(Exception):
    """An unexpected error."""


def fuzz_route(count: int, seed: int = SEED, told: Callable[[str], None] = lambda text: None) -> FuzzedRoute:
    """Route `count` batches. Raises errors that would end a worker, and AssertionError if a record is lost or a limit exceeded."""
    found, mark = FuzzedRoute(), prepare.content_mark

    def fails(hit: Any) -> int:
        if _BUG.encode() in bytes(hit.event):
            raise _Bug("unexpected")
        return mark(hit)

    async def run(folder: Path) -> None:
        worker = _Worker(folder, seed, found)
        for number in range(count):
            # Three of four batches hold only records that browsers can cause.
            await worker.batch(whole=number % 4 == 0)
            if not (number + 1) % _PROGRESS:
                told(f"{number + 1} batches")

    logging.disable()  # each dead letter for a bug is an error in the log
    try:
        with tempfile.TemporaryDirectory() as folder, patch.object(prepare, "content_mark", fails):
            asyncio.run(run(Path(folder)))
    finally:
        logging.disable(logging.NOTSET)
    return found


def prove_fuzz_route(count: int) -> bool:
    """Return whether no batch ends a worker, and every record is accounted for."""
    began = time.monotonic()
    try:
        found = fuzz_route(count, SEED, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    except Exception:
        print("fuzz of the router: BROKEN")
        traceback.print_exc()
        return False
    print(f"fuzz of the router (seed {SEED}, {time.monotonic() - began:.0f} s): {found.batches} hostile batches")
    print("  " + ", ".join(f"{number} {what}" for what, number in sorted(found.found.items())))
    print(
        f"  largest ledger entry {found.largest_entry} bytes, headers of a dead letter {found.largest_headers}; no worker "
        "ends, every record is accounted for\n  kept",
        flush=True,
    )
    return True
