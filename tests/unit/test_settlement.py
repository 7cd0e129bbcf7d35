"""Splitting hits without an outcome into waiting, expired and missing ones."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.offsets import Span
from pipeline.kafka.watermarks import Watermarks
from pipeline.operations.settlement import Settlement, settle, uncounted_ranges, unread_ranges, width_outside

A, B = ("deliveries-a", 0), ("deliveries-a", 1)


@pytest.mark.parametrize(
    ("outstanding", "taken", "waiting", "is_exact", "expected"),
    [
        (10, 0, 10, True, Settlement()),
        (10, 0, 25, False, Settlement()),  # commit markers are between the waiting records
        (10, 0, 7, True, Settlement(missing=3)),
        (10, 4, 7, True, Settlement(3, 3)),
        (10, 20, 0, True, Settlement(10, 10)),
        (10, 2, 0, True, Settlement(2, 2, missing=8)),
        (0, 1, 0, True, Settlement()),  # only a commit marker was deleted
        (10, 4, 25, False, Settlement(0, 4)),  # up to 4, as the waiting records were not counted
        (3, 40, 25, False, Settlement(0, 3)),
        (-2, 5, 0, True, Settlement()),
    ],
)
def test_settle_with_a_complete_ledger(
    outstanding: int, taken: int, waiting: int, is_exact: bool, expected: Settlement
) -> None:
    assert settle(outstanding, taken, waiting, is_exact, is_complete=True) == expected


@pytest.mark.parametrize(
    ("outstanding", "taken", "waiting", "expected"),
    [
        (-5, 0, 0, Settlement(earlier=5)),  # five hits were routed before the first entry, and delivered since
        (-5, 0, 2, Settlement(earlier=7)),
        (10, 0, 10, Settlement()),
        (10, 0, 7, Settlement(missing=3)),  # the sums can only be too low, so this is a loss
        (10, 4, 7, Settlement(3, 4)),
        (-5, 4, 0, Settlement(0, 4, 5)),
    ],
)
def test_settle_without_the_oldest_entries(outstanding: int, taken: int, waiting: int, expected: Settlement) -> None:
    assert settle(outstanding, taken, waiting, is_exact=True, is_complete=False) == expected


@dataclass
class World:
    """One partition: the offsets that hold records, the next offset of its group, and its low watermark."""

    is_record: list[bool]
    read: int
    low: int

    @property
    def outstanding(self) -> int:
        return sum(self.is_record[self.read :])

    @property
    def expired(self) -> int:
        return sum(self.is_record[self.read : self.low])


worlds = st.builds(
    lambda is_record, read, low: World(is_record, min(read, len(is_record)), min(low, len(is_record))),
    st.lists(st.booleans(), max_size=20),
    st.integers(0, 20),
    st.integers(0, 20),
)


@given(st.lists(worlds, min_size=1, max_size=3), st.integers(0, 5), st.booleans(), st.booleans())
def test_bounds_contain_the_truth_and_are_exact_if_records_were_counted(
    parts: list[World], cut: int, is_exact: bool, is_complete: bool
) -> None:
    """For `cut` hits without an outcome, the ledger entries of their routing were deleted."""
    outstanding, expired = sum(part.outstanding for part in parts), sum(part.expired for part in parts)
    offsets = {
        number: Watermarks(part.low, len(part.is_record), len(part.is_record)) for number, part in enumerate(parts)
    }
    marks = {("t", number): mark for number, mark in offsets.items()}
    found = unread_ranges(marks, {("t", number): part.read for number, part in enumerate(parts)}, {}, "g")
    spans = [(parts[number], span) for (_, number), span in found.ranges.items()]
    waiting = sum(
        sum(part.is_record[span.low : span.end]) if is_exact else max(0, span.end - span.low) for part, span in spans
    )
    known = outstanding if is_complete else outstanding - min(cut, outstanding)
    settlement = settle(known, found.deleted, waiting, is_exact, is_complete)
    assert settlement.missing == 0 and found.problems == ()
    assert settlement.expired <= expired <= settlement.expired_at_most
    pending = known + settlement.earlier - settlement.expired
    assert pending >= outstanding - expired
    if is_exact and is_complete:
        assert settlement.expired == settlement.expired_at_most == expired and pending == outstanding - expired


@given(st.lists(worlds, min_size=1, max_size=3), st.integers(1, 5))
def test_lost_hit_is_missing_even_if_the_ledger_is_incomplete(parts: list[World], lost: int) -> None:
    waiting = sum(part.outstanding - part.expired for part in parts)
    taken = sum(max(0, part.low - part.read) for part in parts)
    for is_complete in (True, False):
        assert settle(waiting + taken + lost, taken, waiting, True, is_complete).missing == lost


def test_unread_ranges_start_at_the_furthest_known_offset() -> None:
    marks = {A: Watermarks(20, 50, 52), B: Watermarks(0, 10, 10)}
    assert unread_ranges(marks, {A: 30, B: 10}, {A: 29}, "g").ranges == {A: Span(30, 52), B: Span(10, 10)}
    assert unread_ranges(marks, {A: 5}, {A: 12}, "g").deleted == 8
    nothing_committed = unread_ranges(marks, {}, {}, "g")
    assert nothing_committed.deleted == 20 and nothing_committed.ranges == {A: Span(20, 52), B: Span(0, 10)}
    # Kafka has deleted the group's offsets; the ledger still has them.
    assert unread_ranges(marks, {}, {A: 40, B: 10}, "g").ranges == {A: Span(40, 52), B: Span(10, 10)}


def test_group_offset_beyond_the_end_of_its_topic_is_a_problem() -> None:
    found = unread_ranges({B: Watermarks(0, 10, 10)}, {B: 500}, {B: 500}, "deliver-a")
    assert found.ranges == {B: Span(0, 10)} and found.deleted == 0
    assert found.problems[0].startswith(
        "deliveries-a-1: group deliver-a has read up to 500, but the partition ends at 10"
    )


def test_uncounted_ranges_are_committed_offsets_without_entries() -> None:
    marks = {A: Watermarks(5, 50, 50), B: Watermarks(0, 10, 10)}
    assert uncounted_ranges(marks, {A: 30, B: 10}, {A: 20}, is_complete=True) == {A: Span(20, 30), B: Span(0, 10)}
    assert uncounted_ranges(marks, {A: 30, B: 10}, {A: 20}, is_complete=False) == {A: Span(20, 30)}
    assert uncounted_ranges(marks, {A: 30}, {A: 30}, is_complete=True) == {}


def test_width_of_gaps_excludes_read_offsets() -> None:
    assert width_outside([(0, 10), (5, 15)], []) == 15
    assert width_outside([(0, 10)], [(2, 4), (8, 20)]) == 6
    assert width_outside([], [(0, 5)]) == 0
