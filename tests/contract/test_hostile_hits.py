"""Hits that a stranger may send, and records that only a front end can write: no worker ends, and all others are routed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from pipeline.codec.hit import check_hit
from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.operations.ledger import read_ledger
from tests.roles import Role, dead, delivered, hit, ids, put, running, wait_until

MakeConfig = Callable[..., Config]
_BODY_BYTES = 65_536


def assert_never_failed(worker: Role) -> None:
    assert worker.process.poll() is None
    assert "batch failed: attempt" not in worker.log.read_text()


def test_made_up_names_and_paths_stop_no_router(make_config: MakeConfig, tmp_path: Path) -> None:
    """20 such hits in one batch made a ledger record that Kafka refuses; the worker ended at each try."""
    plan = tmp_path / "plan.json"
    plan.write_text('{"properties": {"name": {}, "user": {}}, "additionalProperties": {"type": "number"}}')
    config = make_config(
        projects={"shop": {"tracking_plan": {"schema": str(plan), "on_violation": "warn"}}, "blog": {}}
    )
    hostile = [hit(f"names-{n}", integrations={f"{n:02}-{k:04}": True for k in range(1950)}) for n in range(60)]
    hostile += [
        hit(f"paths-{n}", event={"name": "E", "user": {"userId": "u"}, f"{n}" + "\u20ac" * 9_000: "no number"})
        for n in range(60)
    ]
    for body in hostile:
        assert len(body) <= _BODY_BYTES and check_hit(body)[0]  # the intake answers 204
    good = [hit(f"good-{n:03}") for n in range(100)]
    ensure_topics(config)
    put(config, *good[:50], *hostile, *good[50:])
    put(config, hit("blog"), project="blog")
    with running("route", config, tmp_path) as worker:
        wait_until(lambda: read_ledger(config).hits.unique == 221, "all hits")
        routed = ids(config, "a")
        assert len(routed) == len(set(routed)) == 221
        assert_never_failed(worker)
        ledger = read_ledger(config)
        assert ledger.adds_up and ledger.hits.received == 221 and not ledger.hits.dead
        assert ledger.unknown_names.total() == 60 * 1950
        assert sum(count for (what, _), count in ledger.notes.items() if what == "plan_violation") == 60
        assert len(ledger.unknown_names) < 1_100
        assert worker.stop() == 0


def test_records_that_become_too_large_are_dead_letters(make_config: MakeConfig, tmp_path: Path) -> None:
    """Written by a front end, and just small enough for Kafka: what the router makes of them is larger."""
    config = make_config({"a": {"destination": "Kafka"}})
    good = [hit(f"good-{n:03}") for n in range(300)]
    with running("route", config, tmp_path) as worker:
        put(config, *good[:100])
        put_with_header(config, hit("moved"), b"x" * 999_850)  # to its partition, with a header more
        put(config, *good[100:150], b"no hit " * 142_850)  # with the headers of a dead letter
        put_with_header(config, hit("moved-too"), b"x" * 999_850)
        put(config, *good[150:])
        wait_until(lambda: read_ledger(config).hits.received == 303, "all hits")
        assert ids(config, "a") == sorted(f"good-{n:03}" for n in range(300))
        letters = [dict(record.headers() or ()) for record in dead(config)]
        assert sorted(letter["reason"] for letter in letters) == [b"invalid_json", b"route_failed", b"route_failed"]
        assert all(letter["project"] == b"shop" and letter["origin-offset"].isdigit() for letter in letters)
        assert sum("value-bytes" in letter for letter in letters) == 1
        put(config, hit("after"))
        wait_until(lambda: "after" in ids(config, "a"), "a hit after them")
        assert len(delivered(config, "a")) == 301
        assert_never_failed(worker)
        ledger = read_ledger(config)
        assert ledger.adds_up and (ledger.hits.unique, ledger.hits.dead) == (301, 3)
        assert worker.stop() == 0


def test_a_hit_that_its_topic_does_not_take_is_a_dead_letter(make_config: MakeConfig, tmp_path: Path) -> None:
    """An operator's `max.message.bytes` below the producer's: the broker refuses, and would refuse for ever."""
    config = make_config({"a": {"destination": "Kafka"}, "b": {"destination": "Kafka"}})
    ensure_topics(config)
    small = ConfigResource(
        ResourceType.TOPIC,
        TopicNames(config.kafka.topic_prefix).deliveries("a"),
        incremental_configs=[ConfigEntry("max.message.bytes", "20000", incremental_operation=AlterConfigOpType.SET)],
    )
    admin = AdminClient({"bootstrap.servers": config.kafka.servers})
    for changed in admin.incremental_alter_configs([small]).values():
        changed.result(30)
    good = [hit(f"good-{n:03}") for n in range(300)]
    with running("route", config, tmp_path) as worker:
        put(config, *good[:150], hit("large", x=random.Random(1).randbytes(30_000).hex()), *good[150:])
        wait_until(lambda: read_ledger(config).hits.received == 301, "all hits")
        assert ids(config, "a") == sorted(f"good-{n:03}" for n in range(300))
        (letter,) = [dict(record.headers() or ()) for record in dead(config)]
        assert letter["reason"] == b"route_failed" and b"MSG_SIZE_TOO_LARGE" in letter["message"]
        ledger = read_ledger(config)
        assert ledger.adds_up and (ledger.hits.unique, ledger.hits.dead) == (300, 1)
        assert_never_failed(worker)
        assert worker.stop() == 0


def put_with_header(config: Config, value: bytes, header: bytes) -> None:
    producer = Producer({"bootstrap.servers": config.kafka.servers})
    headers = [("project", b"shop"), ("trace", header)]
    producer.produce(TopicNames(config.kafka.topic_prefix).hits_raw, value, headers=headers)
    assert producer.flush(30) == 0
