"""Tests of the tracking of partitions that are not read to their end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.kafka.bounded_read import Remaining
from pipeline.kafka.offsets import Span


def test_an_emptied_partition_is_read_from_the_start() -> None:
    assert not Remaining({0: Span(0, 0), 1: Span(17, 17)})


def test_the_last_record_ends_its_partition_only() -> None:
    remaining = Remaining({0: Span(0, 3), 1: Span(5, 6)})
    assert not remaining.reached(0, 2)
    assert remaining.reached(0, 3)
    assert remaining.partitions == [1]
    assert remaining.offsets == 1


def test_a_reported_end_beyond_trailing_markers_finishes_the_partition() -> None:
    remaining = Remaining({0: Span(0, 3)})
    assert remaining.reached(0, 9)
    assert not remaining.reached(0, 10)


@given(st.integers(0, 50), st.integers(1, 50), st.lists(st.integers(0, 120)))
def test_offsets_left_never_rise_and_zero_means_done(low: int, width: int, reached: list[int]) -> None:
    remaining = Remaining({0: Span(low, low + width)})
    left = [remaining.offsets]
    for following in sorted(reached):
        remaining.reached(0, following)
        left.append(remaining.offsets)
    assert left == sorted(left, reverse=True)
    assert bool(remaining) == (max([low, *reached]) < low + width)
