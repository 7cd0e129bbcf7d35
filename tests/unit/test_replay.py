"""The records that a replay of hits-raw writes."""

from __future__ import annotations

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import RAW_HIT_SCHEMA, WITHOUT_REGISTRY, partition_of
from pipeline.operations.replay import ReplayRecord, replay_record
from pipeline.stages.classify import Dead, RawHit, Rekey, classify_raw

HIT = b'{"hitId":"h","event":{"user":{"userId":"u"}}}'
NAMELESS = b'{"event":{"user":{"userId":"u"}}}'
PROJECT = ("project", b"shop")
AT_MS = 1_795_515_330_000


def record(
    value: bytes, key: bytes | None, partition: int, offset: int = 5, headers: list[tuple[str, bytes]] | None = None
) -> Message:
    return Message(
        topic="hits-raw",
        partition=partition,
        offset=offset,
        key=key,
        value=value,
        headers=[PROJECT] if headers is None else headers,
        timestamp=(TIMESTAMP_LOG_APPEND_TIME, AT_MS),
    )


def again(message: Message, framing: Framing = WITHOUT_REGISTRY) -> ReplayRecord:
    found = replay_record(message, {"shop"}, framing)
    assert isinstance(found, ReplayRecord)
    return found


def routed(value: bytes, found: ReplayRecord, partitions: int) -> RawHit:
    """Return the hit that the router reads from the replayed record."""
    headers = [(name, text.encode() if isinstance(text, str) else text) for name, text in found.headers]
    place = partition_of(found.key or b"", partitions)
    raw = classify_raw(value, found.key, headers, "hits-raw", place, 99, partitions, {"shop"})
    assert isinstance(raw, RawHit)
    return raw


@pytest.mark.parametrize("partition", range(8))
def test_old_hit_is_replayed_from_any_partition(partition: int) -> None:
    found = again(record(HIT, b"shop/h", partition))
    assert found.key == b"shop/h"
    assert all(name != "rekeyed-from" for name, _ in found.headers)
    assert routed(HIT, found, 8).hit_id == "h"


def test_record_without_key_is_replayed_with_the_key_of_its_hit() -> None:
    assert again(record(HIT, None, 3)).key == b"shop/h"


def test_hit_without_id_and_its_rekeyed_copy_get_the_same_id() -> None:
    original = record(NAMELESS, None, 3)
    moved = classify_raw(NAMELESS, None, [PROJECT], "hits-raw", 3, 5, 8, {"shop"})
    assert isinstance(moved, Rekey)
    copy = record(NAMELESS, moved.key, moved.partition, 9, moved.headers)  # type: ignore[arg-type]
    assert again(original).key == again(copy).key == moved.key
    assert routed(NAMELESS, again(original), 8).hit_id == routed(NAMELESS, again(copy), 8).hit_id


def test_records_of_an_earlier_replay_are_skipped() -> None:
    assert (
        replay_record(record(HIT, b"shop/h", 0, headers=[PROJECT, ("replay-to", b"crm")]), {"shop"}, WITHOUT_REGISTRY)
        is None
    )


def test_invalid_record_is_skipped_with_its_reason() -> None:
    found = replay_record(record(b"garbage", b"shop/h", 0), {"shop"}, WITHOUT_REGISTRY)
    assert isinstance(found, Dead) and found.reason == "invalid_json"


@pytest.mark.parametrize("key", [b"shop/h", None])
def test_hit_keeps_its_received_at_or_gets_the_append_time(key: bytes | None) -> None:
    dated = [PROJECT, ("received-at", b"1795500000123")]
    assert routed(HIT, again(record(HIT, key, 0, headers=dated)), 4).received_at_ms == 1_795_500_000_123
    assert routed(HIT, again(record(HIT, key, 0)), 4).received_at_ms == AT_MS


def test_hits_in_registry_framing_are_replayed() -> None:
    framing = Framing(RAW_HIT_SCHEMA, 7, lambda number: RAW_HIT_SCHEMA)
    facts = {"project": "shop", "received_at": None, "request_ip": None, "user_agent": None}
    value = framing.encode({"hit": HIT, **facts})
    assert again(record(value, b"shop/h", 0, headers=[("any", b"x")]), framing).key == b"shop/h"
