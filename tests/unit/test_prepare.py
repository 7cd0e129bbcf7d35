"""Tests of what the transaction of a batch of raw records writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import pytest
from confluent_kafka import Message
from faust.types import TP

from pipeline.codec.ledger_entry import decode_ledger_entry
from pipeline.codec.raw_record import partition_of
from pipeline.config import Config
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transport.batch import Batch
from pipeline.operations.ledger import sum_ledger
from pipeline.router import prepare, routing
from pipeline.router.prepare import Preparer, Work
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_store import SeenStore

_TP = TP("hits-raw", 0)


@dataclass
class Raw:
    """A record of hits-raw with the methods of a confluent_kafka Message."""

    name: str
    number: int
    project: str = "shop"

    def key(self) -> bytes:
        return f"{self.project}/{self.name}".encode()

    def value(self) -> bytes:
        return json.dumps({"hitId": self.name, "event": {"name": "E", "user": {"userId": "u"}}}).encode()

    def headers(self) -> list[tuple[str, bytes]]:
        return [("project", self.project.encode())]

    def topic(self) -> str:
        return _TP.topic

    def partition(self) -> int:
        return _TP.partition

    def offset(self) -> int:
        return self.number

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_795_515_330_000


def names(count: int) -> list[str]:
    """Return ids that belong to the only assigned partition."""
    found = (f"hit-{number}" for number in range(1000))
    return [name for name in found if partition_of(f"shop/{name}".encode(), 4) == _TP.partition][:count]


class Bench:
    """A Preparer whose transactions all succeed."""

    def __init__(self) -> None:
        config = Config.model_validate(
            {"projects": {"shop": {}}, "connections": {"a": {"destination": "Kafka"}, "b": {"destination": "Kafka"}}}
        )
        self.topics = TopicNames("")
        deduplicator = Deduplicator()
        deduplicator.install({0: SeenStore(86_400_000)}, 4)
        self._preparer = Preparer(config, deduplicator)
        self._offset = 0

    def route(self, *hits: str) -> Work:
        records = [Raw(name, self._offset + number) for number, name in enumerate(hits)]
        self._offset += len(hits)
        work = self._preparer.prepare(Batch.of(0, {_TP: cast(list[Message], records)}))
        work.claim.commit()
        return work

    def ids(self, work: Work, connection: str) -> list[str]:
        return [json.loads(value)["hitId"] for value, _ in work.routed[self.topics.deliveries(connection)]]

    def dead_letters(self, work: Work) -> list[dict[str, Any]]:
        found = work.dead_letters
        return [{name: (value or b"") for name, value in output.headers or ()} for output in found]


def fails_for(name: str, original: Any) -> Any:
    def failing(*arguments: Any, **named: Any) -> Any:
        if any(name in str(argument) for argument in arguments):
            raise OverflowError("unexpected data")
        return original(*arguments, **named)

    return failing


@pytest.mark.parametrize("place", ["classify_raw", "encode_routed_hit"])
def test_a_hit_that_raises_an_unexpected_error_is_dead_lettered_and_may_be_sent_again(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    first, poison, last = names(3)
    module = prepare if place == "classify_raw" else routing
    monkeypatch.setattr(module, place, fails_for(poison, getattr(module, place)))
    work = bench.route(first, poison, poison, last)
    assert bench.ids(work, "a") == bench.ids(work, "b") == [first, last]
    dead_letter, *others = bench.dead_letters(work)
    assert (dead_letter["reason"], dead_letter["origin-offset"]) == (b"route_failed", b"1")
    assert b"unexpected data" in dead_letter["message"] and len(others) == (1 if place == "classify_raw" else 0)
    assert "topic=hits-raw partition=0 offset=1" in caplog.text
    (entry,) = (output for output in work.others if output.topic == bench.topics.ledger)
    ledger = sum_ledger([decode_ledger_entry(entry.value or b"")], topic_only=["a", "b"])
    assert ledger.hits.adds_up and ledger.hits.received == 4 and ledger.hits.unique == 2
    assert all(sums.routed == 2 for sums in ledger.connections.values())
    monkeypatch.undo()
    again = bench.route(poison, first)
    assert bench.ids(again, "a") == [poison]


def test_an_unavailable_service_dead_letters_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def away(*_: Any) -> Any:
        raise ConnectionError("away")

    monkeypatch.setattr(prepare, "classify_raw", away)
    with pytest.raises(ConnectionError):
        bench.route(*names(2))
    monkeypatch.undo()
    assert bench.ids(bench.route(*names(2)), "a") == names(2)


def test_without_connections_each_project_counts_its_own_hits() -> None:
    """The decisions of all projects are one empty tuple then."""
    config = Config.model_validate({"projects": {"shop": {}, "blog": {}}})
    deduplicator = Deduplicator()
    deduplicator.install({0: SeenStore(86_400_000)}, 1)
    records = [Raw(f"hit-{number}", number, project) for number, project in enumerate(["shop", "shop", "blog"])]
    work = Preparer(config, deduplicator).prepare(Batch.of(0, {_TP: cast(list[Message], records)}))
    (entry,) = (output for output in work.others if output.topic == TopicNames("").ledger)
    counts = decode_ledger_entry(entry.value or b"").counts.items()
    assert {key.project: count for key, count in counts if key.outcome == "received"} == {"shop": 2, "blog": 1}
