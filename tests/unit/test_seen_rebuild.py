"""Stores rebuilt from the blocks of all partitions, after any changes of the number of partitions."""

from __future__ import annotations

import zlib
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec.raw_record import partition_of
from pipeline.codec.seen_block import SeenBlock, as_hashes, as_ids, as_marks, decode_seen_block, encode_seen_block
from pipeline.stages import seen_rebuild
from pipeline.stages.deduplicate import DedupeResult, Deduplicator, dedupe_id
from pipeline.stages.id_table import ABSENT
from pipeline.stages.seen_rebuild import SeenRebuild
from pipeline.stages.seen_store import SeenStore

WINDOW_MS = 3_000
NAMES = [f"hit-{number}" for number in range(200)]


def key(name: str) -> bytes:
    return f"shop/{name}".encode()


def blocks_of(names: list[str], partitions: int, at_ms: int = 1) -> dict[int, SeenBlock]:
    """Return the blocks by partition of a group that accepts `names` with this number of partitions."""
    places: dict[int, list[str]] = defaultdict(list)
    for name in names:
        places[partition_of(key(name), partitions)].append(name)
    return {partition: block_of(found, partitions, at_ms) for partition, found in places.items()}


def block_of(names: list[str], partitions: int, at_ms: int = 1) -> SeenBlock:
    joined = b"".join(dedupe_id("shop", name) for name in names)
    hashes = as_hashes([zlib.crc32(key(name)) for name in names])
    return decode_seen_block(encode_seen_block(joined, hashes, as_marks([7] * len(names)), at_ms, at_ms, partitions))


def known(store: SeenStore, names: list[str], at_ms: int = 1) -> set[str]:
    found = store.find(as_ids(b"".join(dedupe_id("shop", name) for name in names)), store.span(at_ms))
    return {name for name, mark in zip(names, found.tolist(), strict=True) if mark != ABSENT}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=4), st.integers(1, 40))
def test_after_any_partition_changes_each_id_is_only_in_the_partition_of_its_key(
    steps: list[tuple[int, int]], last: int
) -> None:
    rebuild = SeenRebuild(WINDOW_MS, range(last), last)
    names = iter(NAMES)
    accepted: list[str] = []
    for partitions, count in steps:
        here = [next(names) for _ in range(count)]
        accepted += here
        for partition, block in blocks_of(here, partitions).items():
            rebuild.add(partition, block)
    stores = rebuild.finish()
    assert sum(map(len, stores.values())) == len(accepted)
    for partition, store in stores.items():
        assert known(store, NAMES) == {name for name in accepted if partition_of(key(name), last) == partition}


def test_moved_ids_do_not_expire_ids_of_a_lagging_partition() -> None:
    """The next hit of partition 1 is 10 windows old; ids move in from partition 2, which has no lag."""
    now_ms = 100 * WINDOW_MS
    (stays,) = [name for name in NAMES if (partition_of(key(name), 4), partition_of(key(name), 5)) == (1, 1)][:1]
    (moves,) = [name for name in NAMES if (partition_of(key(name), 4), partition_of(key(name), 5)) == (2, 1)][:1]
    late_ms = now_ms - 10 * WINDOW_MS
    rebuild = SeenRebuild(WINDOW_MS, [1], 5)
    rebuild.add(1, block_of([stays], 4, late_ms))
    rebuild.add(2, block_of([moves], 4, now_ms))
    store = rebuild.finish()[1]
    store.add(as_ids(dedupe_id("shop", "new")), as_marks([7]), late_ms + 1)
    assert known(store, [stays, "new"], late_ms + 1) == {stays, "new"}
    assert known(store, [moves], now_ms) == {moves}


@pytest.mark.parametrize(("before", "after"), [(4, 8), (3, 5), (8, 4)])
def test_workers_together_hold_each_id_once(before: int, after: int) -> None:
    """More partitions take no additional memory from any worker."""
    blocks = blocks_of(NAMES, before)
    held = []
    for owned in (range(after // 2), range(after // 2, after)):
        rebuild = SeenRebuild(WINDOW_MS, owned, after)
        for partition, block in blocks.items():
            rebuild.add(partition, block)
        stores = rebuild.finish()
        assert sorted(stores) == [*owned]
        held += [name for store in stores.values() for name in known(store, NAMES)]
    assert sorted(held) == sorted(NAMES)


def test_ids_of_partitions_that_are_not_owned_are_left_out() -> None:
    rebuild = SeenRebuild(WINDOW_MS, [0], 4)
    for partition, block in blocks_of(NAMES, 4).items():
        rebuild.add(partition, block)
    assert len(rebuild.finish()[0]) == sum(partition_of(key(name), 4) == 0 for name in NAMES)


def test_ids_that_moved_expire_with_the_window() -> None:
    rebuild = SeenRebuild(WINDOW_MS, range(8), 8)
    for partition, block in blocks_of(NAMES[:100], 4, at_ms=1).items():
        rebuild.add(partition, block)
    for partition, block in blocks_of(NAMES[100:], 8, at_ms=1 + 2 * WINDOW_MS).items():
        rebuild.add(partition, block)
    assert sum(map(len, rebuild.finish().values())) == 100


def test_buffered_ids_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_rebuild, "_GATHERED_IDS", 50)
    rebuild = SeenRebuild(WINDOW_MS, range(5), 5)
    for number in range(0, 200, 10):
        rebuild.add(0, block_of(NAMES[number : number + 10], 3))
        waiting = sum(len(block.ids) for blocks in rebuild._moved.values() for block in blocks)
        assert waiting < 50
    assert sum(map(len, rebuild.finish().values())) == 200


def test_blocks_without_a_number_of_partitions_count_as_current() -> None:
    value = bytearray(encode_seen_block(dedupe_id("shop", "a"), as_hashes([]), as_marks([7]), 1, 1, 0))
    value[0] = 2
    for owned, ids in (([3], 1), ([0, 1, 2], 0)):
        rebuild = SeenRebuild(WINDOW_MS, owned, 4)
        rebuild.add(3, decode_seen_block(bytes(value)))
        assert sum(map(len, rebuild.finish().values())) == ids


def test_a_rebuilt_store_has_the_marks_that_claims_wrote() -> None:
    deduplicator = Deduplicator()
    deduplicator.install({0: SeenStore(WINDOW_MS)}, 1)
    claim = deduplicator.claim()
    digests = [dedupe_id("shop", name) for name in ("a", "b")]
    deduplicator.classify(claim, 0, digests, [3, 4], [7, 8], [1, 2])
    rebuild = SeenRebuild(WINDOW_MS, [0], 1)
    for claimed in claim.blocks():
        assert claimed.hashes.tolist() == [3, 4]
        value = encode_seen_block(
            claimed.joined,
            claimed.hashes,
            claimed.marks,
            claimed.first_ms,
            claimed.last_ms,
            deduplicator.partitions or 0,
        )
        rebuild.add(0, decode_seen_block(value))
    deduplicator.install(rebuild.finish(), 1)
    again = deduplicator.classify(deduplicator.claim(), 0, digests, [3, 4], [7, 9], [2, 2])
    assert again == [DedupeResult.DUPLICATE, DedupeResult.CONFLICTING]


def test_an_id_without_a_mark_is_never_conflicting() -> None:
    value = b"\x01" + bytes(3) + (1).to_bytes(4, "big") + bytes(16) + dedupe_id("shop", "a")
    rebuild = SeenRebuild(WINDOW_MS, [0], 1)
    rebuild.add(0, decode_seen_block(value))
    deduplicator = Deduplicator()
    deduplicator.install(rebuild.finish(), 1)
    found = deduplicator.classify(deduplicator.claim(), 0, [dedupe_id("shop", "a")], [3], [7], [2])
    assert found == [DedupeResult.DUPLICATE]


def test_the_largest_number_of_partitions_of_any_block_is_kept() -> None:
    rebuild = SeenRebuild(WINDOW_MS, [0], 4)
    assert rebuild.most_partitions == 4
    rebuild.add(3, block_of(["a"], 8))
    assert rebuild.most_partitions == 8
