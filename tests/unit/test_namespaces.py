"""Hits of public doors, hits of secret doors, generated ids and replays are deduplicated separately (contract.md, section 5)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, cast
from unittest.mock import Mock

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.raw_record import is_public, partition_of
from pipeline.codec.seen_block import SeenBlock, as_hashes, as_marks, decode_seen_block, encode_seen_block
from pipeline.config import Config
from pipeline.kafka.transport.batch import Batch
from pipeline.operations import dead_letters
from pipeline.router.prepare import Preparer, Work
from pipeline.stages.classify import RawHit, Rekey, classify_raw
from pipeline.stages.deduplicate import Deduplicator, common_id, id_of
from pipeline.stages.seen_rebuild import SeenRebuild
from pipeline.stages.seen_store import SeenStore
from tests.unit.test_prepare import _TP, Raw

WINDOW_MS = 86_400_000
AT_MS = 1_795_515_330_000
Headers = list[tuple[str, bytes]]
PROJECT: Headers = [("project", b"shop")]
PUBLIC: Headers = [*PROJECT, ("endpoint", b"/v1/batch"), ("door", b"public")]
SECRET: Headers = [*PROJECT, ("endpoint", b"/track")]


def raw(headers: Headers, hit_id: str | None = "h", key_id: str | None = None) -> RawHit:
    """Return a record of the only partition."""
    body: dict[str, Any] = {"event": {"name": "E", "user": {"userId": "u"}}}
    if hit_id is not None:
        body["hitId"] = hit_id
    key = f"shop/{hit_id if key_id is None else key_id}".encode()
    found = classify_raw(json.dumps(body).encode(), key, headers, "hits-raw", 0, 7, 1, {"shop"})
    if isinstance(found, Rekey):
        found = classify_raw(json.dumps(body).encode(), found.key, found.headers, "hits-raw", 0, 8, 1, {"shop"})
    assert isinstance(found, RawHit), found
    return found


class Router:
    """A router of one partition whose transactions all succeed."""

    def __init__(self) -> None:
        self.config = Config.model_validate({"projects": {"shop": {}}, "connections": {"a": {"destination": "Kafka"}}})
        self._deduplicator = Deduplicator()
        self._deduplicator.install({0: SeenStore(WINDOW_MS)}, 1)
        self._preparer = Preparer(self.config, self._deduplicator)
        self._offset = 0

    def route(self, *hits: Headers, hit_id: str = "h", name: str = "E") -> list[dict[str, Any]]:
        """Return what the connection gets of records with these headers."""
        records = []
        for headers in hits:
            record = Raw(hit_id, self._offset)
            body = {"hitId": hit_id, "event": {"name": name, "user": {"userId": "u"}}}
            record.headers = lambda headers=headers: headers  # type: ignore[method-assign, misc]
            record.value = lambda body=body: json.dumps(body).encode()  # type: ignore[method-assign, misc]
            records.append(record)
            self._offset += 1
        return [json.loads(value) for value in self._values(self.prepare(*records))]

    def prepare(self, *records: Raw) -> Work:
        """Return what the transaction of these records writes."""
        batch = Batch.of(0, {_TP: cast(list[Message], list(records))})
        assert batch is not None
        work = self._preparer.prepare(batch)
        work.claim.commit()
        return work

    def _values(self, work: Work) -> list[bytes]:
        routed = [value for value, _ in work.routed["deliveries-a"]]
        return routed + [output.value or b"" for output in work.others if output.topic == "deliveries-a"]

    def upgrade(self, *hits: RawHit, partitions: int = 1) -> None:
        """Start with `hits` that an older release accepted with this number of partitions."""
        rebuild = SeenRebuild(WINDOW_MS, [0], 1)
        rebuild.add(0, old_block(hits, partitions))
        self._deduplicator.install(rebuild.finish(), 1)


def old_block(hits: Sequence[RawHit], partitions: int) -> SeenBlock:
    joined = b"".join(common_id(hit) for hit in hits)
    hashes, marks = as_hashes([hit.key_hash for hit in hits]), as_marks([9] * len(hits))
    value = bytearray(encode_seen_block(joined, hashes, marks, AT_MS, AT_MS, partitions))
    value[1] = 0
    return decode_seen_block(bytes(value))


def doors(routed: Sequence[dict[str, Any]]) -> list[str]:
    return [hit.get("door", "secret") for hit in routed]


def test_hits_of_a_public_door_suppress_no_hit_of_a_secret_door() -> None:
    router = Router()
    assert doors(router.route(PUBLIC, name="garbage")) == ["public"]
    (routed,) = router.route(SECRET, SECRET, name="Order")
    assert (routed["event"]["name"], "door" in routed) == ("Order", False)
    assert router.route(PUBLIC, SECRET) == []


@pytest.mark.parametrize(
    ("headers", "public"),
    [
        ([], False),
        ([("endpoint", b"/track")], False),
        ([("endpoint", b"/v1/batch")], False),
        ([("endpoint", b"/collect")], True),
        ([("endpoint", b"/ds")], True),
        ([("endpoint", b"/collect"), ("door", b"secret")], False),
        ([("endpoint", b"/track"), ("door", b"public")], True),
        ([("door", b"Public")], True),
        ([("door", b"anything")], True),
        ([("door", b"")], False),
        ([("door", None)], False),
    ],
)
def test_the_door_is_read_from_the_headers(headers: Headers, public: bool) -> None:
    assert is_public(headers) is raw([*PROJECT, *headers]).is_public is public


def test_a_record_that_is_written_back_keeps_its_door() -> None:
    value = b'{"hitId":"h","event":{"user":{"userId":"u"}}}'
    for headers in (PUBLIC, [*PROJECT, ("endpoint", b"/ds")]):
        moved = classify_raw(value, b"wrong", headers, "hits-raw", 0, 7, 4, {"shop"})
        assert isinstance(moved, Rekey) and is_public(moved.headers)
        assert moved.partition == partition_of(b"shop/h", 4), "both doors meet where the key belongs"


HIT_IDS = st.one_of(
    st.text(min_size=1, max_size=20),
    st.sampled_from(["h\0crm\0replay-1", "h\0crm", "h", "public\0h", '["shop",false]', "generated"]),
)
WORDS = st.one_of(st.text(max_size=6), st.sampled_from(["crm", "crm\0replay-1", "replay-1", ""]))


@given(HIT_IDS, HIT_IDS, WORDS, WORDS)
def test_ids_of_different_namespaces_never_collide(one: str, other: str, connection: str, replay: str) -> None:
    replayed = [("replay-to", connection.encode()), ("replay-id", replay.encode())] if connection else []
    generated = [("generated", b"hitId")]
    found = {
        "secret": raw(SECRET, one),
        "public": raw(PUBLIC, other),
        "generated": raw([*SECRET, *generated], None, other),
        **(
            {"replay": raw([*SECRET, *replayed], other), "public replay": raw([*PUBLIC, *replayed], one)}
            if replayed
            else {}
        ),
    }
    assert len({id_of(hit) for hit in found.values()}) == len(found)


def test_a_hit_id_with_nul_is_no_replay() -> None:
    replay = [("replay-to", b"a"), ("replay-id", b"dead-letter-3-17")]
    router = Router()
    assert len(router.route(SECRET)) == 1
    assert len(router.route(SECRET, hit_id="h\0a\0dead-letter-3-17")) == 1
    assert len(router.route([*SECRET, *replay])) == 1
    assert router.route([*SECRET, *replay]) == []


def test_a_hit_id_equal_to_a_generated_one_suppresses_nothing() -> None:
    derived = blake2b(b"hits-raw/0/7", digest_size=16).hexdigest()
    nameless = raw(PROJECT, None)
    assert nameless.hit_id == derived and nameless.is_generated
    assert id_of(nameless) != id_of(raw(SECRET, derived))


def test_parts_of_a_replay_id_are_not_ambiguous() -> None:
    ids = {
        id_of(raw([*SECRET, ("replay-to", to.encode()), ("replay-id", replay.encode())], hit_id))
        for to, replay, hit_id in (("a", "b\0c", "h"), ("a\0b", "c", "h"), ("a", "b", "c\0h"))
    }
    assert len(ids) == 3


def test_a_dead_letter_keeps_the_door_for_its_replay() -> None:
    """Also if its record has expired in hits-raw, whose retention is shorter."""
    router = Router()
    record = Raw("h", 0)
    record.value = lambda: b"{broken"  # type: ignore[method-assign]
    for headers, door in ((PUBLIC, [("door", b"public")]), (SECRET, [])):
        record.headers = lambda headers=headers: headers  # type: ignore[method-assign, misc]
        (output,) = router.prepare(record).dead_letters
        kept = Message(topic="dead-letters", partition=0, offset=1, value=output.value, headers=output.headers)
        letter = dead_letters._stored_dead_letter(kept, set())
        written: list[Headers] = []
        producer = Mock(produce=lambda *_, headers=(), written=written: written.append(list(headers)))
        dead_letters._write(router.config, producer, [letter], [None])
        assert written[0] == [("project", "shop"), *door]


class TestUpgrade:
    """The window survives an upgrade from a release with one namespace for all doors."""

    @pytest.mark.parametrize("headers", [SECRET, PUBLIC, [*PROJECT, ("endpoint", b"/collect")]])
    @pytest.mark.parametrize("partitions", [1, 3], ids=["", "and a growth"])
    def test_a_hit_that_it_accepted_is_not_routed_again(self, headers: Headers, partitions: int) -> None:
        router = Router()
        router.upgrade(raw(headers), partitions=partitions)
        assert router.route(headers) == []
        assert len(router.route(headers, hit_id="other")) == 1

    def test_a_replay_that_it_routed_is_not_routed_again(self) -> None:
        replay = [*SECRET, ("replay-to", b"a"), ("replay-id", b"r")]
        router = Router()
        router.upgrade(raw(replay))
        assert router.route(replay) == []
        assert len(router.route(SECRET)) == 1

    def test_common_ids_expire_with_the_window_and_are_not_looked_up_then(self) -> None:
        store = SeenStore(WINDOW_MS)
        block = old_block([raw(PUBLIC)], 1)
        store.add(block.ids, block.marks, AT_MS, is_common=True)
        assert store.has_common_ids and len(store) == 1 and store.memory_bytes
        store.add(block.ids, block.marks, AT_MS + 2 * WINDOW_MS)
        assert not store.has_common_ids and len(store) == 1
        deduplicator = Deduplicator()
        deduplicator.install({0: store}, 1)
        assert not deduplicator.needs_common_ids(0)

    def test_an_older_release_reads_the_blocks_of_this_one(self) -> None:
        """A downgrade is possible: the older release ignores byte 1, and hits of secret doors have the same ids."""
        hit = raw(SECRET)
        value = encode_seen_block(id_of(hit), as_hashes([hit.key_hash]), as_marks([9]), AT_MS, AT_MS, 1)
        assert value[:2] == b"\x03\x01" and value[24:40] == common_id(hit)


def test_the_window_is_rebuilt_by_door() -> None:
    hits: list[Callable[[], RawHit]] = [lambda: raw(PUBLIC), lambda: raw(SECRET)]
    for accepted, other in (hits, hits[::-1]):
        rebuild = SeenRebuild(WINDOW_MS, [0], 1)
        hit = accepted()
        block = encode_seen_block(id_of(hit), as_hashes([hit.key_hash]), as_marks([9]), AT_MS, AT_MS, 2)
        rebuild.add(1, decode_seen_block(block))
        deduplicator = Deduplicator()
        deduplicator.install(rebuild.finish(), 1)
        for known, standing in ((hit, "duplicate"), (other(), "new")):
            arguments = ([id_of(known)], [known.key_hash], [9], [AT_MS])
            (found,) = deduplicator.classify(deduplicator.claim(), 0, *arguments)
            assert found.value == standing
