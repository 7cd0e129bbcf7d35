"""Deduplication: claims, seen stores, blocks (contract.md, section 5)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec.seen_block import as_ids, decode_seen_block, encode_seen_block
from pipeline.stages.deduplicate import Deduplicator, dedupe_id
from pipeline.stages.id_table import IdTable
from pipeline.stages.seen_store import SeenStore

WINDOW_MS = 3_000


def ids(*names: str) -> list[bytes]:
    return [dedupe_id("shop", name) for name in names]


@pytest.fixture
def deduplicator() -> Deduplicator:
    made = Deduplicator()
    made.install({0: SeenStore(WINDOW_MS), 1: SeenStore(WINDOW_MS)})
    return made


def test_a_duplicate_in_the_same_batch_is_dropped(deduplicator: Deduplicator) -> None:
    assert deduplicator.classify(deduplicator.claim(), 0, ids("a", "b", "a"), [1, 1, 1]) == [True, True, False]


def test_a_batch_sees_the_claim_of_the_batch_before_it(deduplicator: Deduplicator) -> None:
    deduplicator.classify(deduplicator.claim(), 0, ids("a"), [1])
    assert deduplicator.classify(deduplicator.claim(), 0, ids("a", "b"), [1, 1]) == [False, True]


def test_a_committed_claim_is_in_the_store(deduplicator: Deduplicator) -> None:
    claim = deduplicator.claim()
    deduplicator.classify(claim, 0, ids("a"), [1])
    assert len(deduplicator.stores[0]) == 0
    claim.commit()
    assert len(deduplicator.stores[0]) == 1
    assert deduplicator.classify(deduplicator.claim(), 0, ids("a"), [2]) == [False]


def test_a_discarded_claim_leaves_nothing_behind(deduplicator: Deduplicator) -> None:
    claim = deduplicator.claim()
    deduplicator.classify(claim, 0, ids("a"), [1])
    claim.discard()
    claim.discard()
    assert deduplicator.classify(deduplicator.claim(), 0, ids("a"), [1]) == [True]


def test_partitions_do_not_share_ids(deduplicator: Deduplicator) -> None:
    claim = deduplicator.claim()
    assert deduplicator.classify(claim, 0, ids("a"), [1]) == [True]
    assert deduplicator.classify(claim, 1, ids("a"), [1]) == [True]


def test_projects_do_not_share_ids() -> None:
    assert dedupe_id("shop", "a") != dedupe_id("blog", "a")
    assert dedupe_id("a", "b") != dedupe_id("a\0", "b")


@pytest.mark.parametrize(("later_ms", "is_new"), [(WINDOW_MS, False), (2 * WINDOW_MS, True)])
def test_an_id_is_known_for_the_window_and_forgotten_after_it(
    deduplicator: Deduplicator, later_ms: int, is_new: bool
) -> None:
    claim = deduplicator.claim()
    deduplicator.classify(claim, 0, ids("a"), [1_000])
    claim.commit()
    assert deduplicator.classify(deduplicator.claim(), 0, ids("a"), [1_000 + later_ms]) == [is_new]


def test_expired_ids_give_their_memory_back() -> None:
    store = SeenStore(WINDOW_MS)
    store.add(as_ids(b"".join(ids("a", "b"))), 1_000)
    store.add(as_ids(b"".join(ids("c"))), 100_000)
    assert len(store) == 1


def test_a_batch_over_several_spans_of_time_is_right(deduplicator: Deduplicator) -> None:
    claim = deduplicator.claim()
    assert deduplicator.classify(claim, 0, ids("a", "b", "a"), [0, 5_000, 9_000]) == [True, True, False]
    blocks = claim.blocks()
    assert [(block.partition, block.first_ms, block.last_ms) for block in blocks] == [(0, 0, 0), (0, 5_000, 5_000)]


def test_a_store_rebuilt_from_blocks_knows_the_same_ids(deduplicator: Deduplicator) -> None:
    claim = deduplicator.claim()
    deduplicator.classify(claim, 0, ids("a", "b"), [1, 2])
    rebuilt = SeenStore(WINDOW_MS)
    for block in claim.blocks():
        rebuilt.add_block(decode_seen_block(encode_seen_block(block.joined, block.first_ms, block.last_ms)))
    assert rebuilt.contains(as_ids(b"".join(ids("a", "b", "c"))), rebuilt.span(2)).tolist() == [True, True, False]


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x02" + bytes(23), encode_seen_block(bytes(16), 0, 0)[:-1]])
def test_a_block_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError):
        decode_seen_block(value)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 2000))
def test_the_table_equals_a_set_through_all_its_growth(seed: int, batches: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    table, known = IdTable(), set()
    for _ in range(batches):
        new = draw.integers(0, 2**64, (size, 2), dtype=np.uint64)
        # Few distinct buckets: overflow into the next ones must work.
        new[: size // 2, 0] &= np.uint64(0x0000000FFFFFFFFF)
        table.add(new)
        known |= set(map(bytes, new))
        asked = np.concatenate((new, draw.integers(0, 2**64, (50, 2), dtype=np.uint64)))
        assert table.contains(asked).tolist() == [bytes(row) in known for row in asked]
    assert len(table) == batches * size


def test_an_id_of_zeros_is_an_id_like_any_other() -> None:
    table = IdTable()
    zero = np.zeros((1, 2), np.uint64)
    assert table.contains(zero).tolist() == [False]
    table.add(zero)
    assert table.contains(zero).tolist() == [True]
