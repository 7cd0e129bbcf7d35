"""Deduplication: claims, seen stores, blocks (contract.md, section 5)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec.seen_block import Marks, as_ids, as_marks
from pipeline.stages.deduplicate import Claim, DedupeResult, Deduplicator, dedupe_id
from pipeline.stages.id_table import ABSENT, IdTable
from pipeline.stages.seen_store import SeenStore

WINDOW_MS = 3_000


def ids(*names: str) -> list[bytes]:
    return [dedupe_id("shop", name) for name in names]


def new(deduplicator: Deduplicator, claim: Claim, partition: int, ids: list[bytes], times: list[int]) -> list[bool]:
    """Return which of the names are new, with equal content for all."""
    found = deduplicator.classify(claim, partition, ids, [3] * len(ids), [1] * len(ids), times)
    assert DedupeResult.CONFLICTING not in found
    return [dedupe_result is DedupeResult.NEW for dedupe_result in found]


def marks(count: int) -> Marks:
    return as_marks([1] * count)


@pytest.fixture
def deduplicator() -> Deduplicator:
    made = Deduplicator()
    made.install({0: SeenStore(WINDOW_MS), 1: SeenStore(WINDOW_MS)}, 2)
    return made


def test_a_duplicate_in_the_same_batch_is_dropped(deduplicator: Deduplicator) -> None:
    assert new(deduplicator, deduplicator.claim(), 0, ids("a", "b", "a"), [1, 1, 1]) == [True, True, False]


def test_a_batch_sees_the_claim_of_the_batch_before_it(deduplicator: Deduplicator) -> None:
    new(deduplicator, deduplicator.claim(), 0, ids("a"), [1])
    assert new(deduplicator, deduplicator.claim(), 0, ids("a", "b"), [1, 1]) == [False, True]


def test_a_committed_claim_is_in_the_store(deduplicator: Deduplicator) -> None:
    claim = deduplicator.claim()
    new(deduplicator, claim, 0, ids("a"), [1])
    assert len(deduplicator.stores[0]) == 0
    claim.commit()
    assert len(deduplicator.stores[0]) == 1
    assert new(deduplicator, deduplicator.claim(), 0, ids("a"), [2]) == [False]


def test_a_discarded_claim_leaves_nothing_behind(deduplicator: Deduplicator) -> None:
    claim = deduplicator.claim()
    new(deduplicator, claim, 0, ids("a"), [1])
    claim.discard()
    claim.discard()
    assert new(deduplicator, deduplicator.claim(), 0, ids("a"), [1]) == [True]


def test_partitions_do_not_share_ids(deduplicator: Deduplicator) -> None:
    claim = deduplicator.claim()
    assert new(deduplicator, claim, 0, ids("a"), [1]) == [True]
    assert new(deduplicator, claim, 1, ids("a"), [1]) == [True]


def test_projects_do_not_share_ids() -> None:
    assert dedupe_id("shop", "a") != dedupe_id("blog", "a")
    assert dedupe_id("a", "b") != dedupe_id("a\0", "b")


@pytest.mark.parametrize(("later_ms", "is_new"), [(WINDOW_MS, False), (2 * WINDOW_MS, True)])
def test_an_id_is_known_for_the_window_and_expires_after_it(
    deduplicator: Deduplicator, later_ms: int, is_new: bool
) -> None:
    claim = deduplicator.claim()
    new(deduplicator, claim, 0, ids("a"), [1_000])
    claim.commit()
    assert new(deduplicator, deduplicator.claim(), 0, ids("a"), [1_000 + later_ms]) == [is_new]


def test_expired_ids_free_their_memory() -> None:
    store = SeenStore(WINDOW_MS)
    store.add(as_ids(b"".join(ids("a", "b"))), marks(2), 1_000)
    store.add(as_ids(b"".join(ids("c"))), marks(1), 100_000)
    assert len(store) == 1


def test_a_batch_over_several_spans_of_time_is_right(deduplicator: Deduplicator) -> None:
    claim = deduplicator.claim()
    assert new(deduplicator, claim, 0, ids("a", "b", "a"), [0, 5_000, 9_000]) == [True, True, False]
    blocks = claim.blocks()
    assert [(block.partition, block.first_ms, block.last_ms) for block in blocks] == [(0, 0, 0), (0, 5_000, 5_000)]


@pytest.mark.parametrize("where", ["the same batch", "the batch before", "the store", "the former span"])
def test_other_content_under_a_known_id_is_conflicting_wherever_the_first_record_was(
    deduplicator: Deduplicator, where: str
) -> None:
    claim = deduplicator.claim()
    assert deduplicator.classify(claim, 0, ids("a", "b"), [3, 3], [7, 8], [1, 1]) == [DedupeResult.NEW] * 2
    if where in ("the store", "the former span"):
        claim.commit()
    if where != "the same batch":
        claim = deduplicator.claim()
    later = WINDOW_MS // 2 if where == "the former span" else 1
    found = deduplicator.classify(claim, 0, ids("a", "a", "a", "b"), [3] * 4, [7, 9, 7, 7], [later] * 4)
    assert [dedupe_result.value for dedupe_result in found] == ["duplicate", "conflicting", "duplicate", "conflicting"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 2000))
def test_the_table_equals_a_dict_through_all_its_growth(seed: int, batches: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    table, known = IdTable(), {}
    for number in range(batches):
        new = draw.integers(0, 2**64, (size, 2), dtype=np.uint64)
        # Few distinct buckets: overflow into the next ones must work.
        new[: size // 2, 0] &= np.uint64(0x0000000FFFFFFFFF)
        table.add(new, as_marks([number] * size))
        known |= dict.fromkeys(map(bytes, new), number)
        asked = np.concatenate((new, draw.integers(0, 2**64, (50, 2), dtype=np.uint64)))
        assert table.find(asked).tolist() == [known.get(bytes(row), ABSENT) for row in asked]
    assert len(table) == batches * size


def test_an_id_of_zeros_is_found_like_any_other() -> None:
    table = IdTable()
    zero = np.zeros((1, 2), np.uint64)
    assert table.find(zero).tolist() == [ABSENT]
    table.add(zero, marks(1))
    assert table.find(zero).tolist() == [1]
