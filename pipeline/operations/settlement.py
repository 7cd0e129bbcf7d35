"""Splits the hits of a connection that have no outcome into waiting, expired and missing ones. Pure.

The ledger counts hits. Kafka counts offsets, and some of these are commit markers or aborted records. So a number of
offsets is an upper bound of hits; exact numbers require counting the waiting records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.kafka.offsets import Span
from pipeline.kafka.watermarks import Place, Watermarks

Range = tuple[int, int]
"""first <= offset < following"""


class Settlement(NamedTuple):
    """The hits without an outcome, by cause.

    - Between `expired` and `expired_at_most` hits were deleted by retention before delivery.
    - `missing` hits are unexplained.
    - `earlier` hits were routed before the first entry of the ledger; they have an outcome in the ledger or still wait.
    """

    expired: int = 0
    expired_at_most: int = 0
    earlier: int = 0
    missing: int = 0


def settle(outstanding: int, deleted: int, waiting: int, is_exact: bool, is_complete: bool) -> Settlement:
    """Explain the `outstanding` hits, which are the routed ones minus those with an outcome.

    `deleted` offsets were deleted by retention before they were read. `waiting` is the number of records that can still be
    read, or an upper bound unless `is_exact`. If the ledger has lost its oldest entries (`is_complete` is False),
    `outstanding` is a lower bound, because a hit is routed before it gets an outcome.
    """
    unexplained = max(0, outstanding - waiting)
    expired = min(unexplained, deleted)
    missing = unexplained - expired
    if is_complete:
        at_most = expired if is_exact else min(deleted, max(0, outstanding))
        return Settlement(expired, max(expired, at_most), 0, missing)
    earlier = max(0, waiting + expired + missing - outstanding)
    return Settlement(expired, deleted, earlier, missing)


@dataclass(frozen=True, slots=True)
class UnreadRanges:
    """The unread ranges of a topic by partition, and how many offsets retention has deleted unread."""

    ranges: Mapping[Place, Span]
    deleted: int
    problems: tuple[str, ...] = ()


def unread_ranges(
    marks: Mapping[Place, Watermarks], committed: Mapping[Place, int], counted: Mapping[Place, int], group: str
) -> UnreadRanges:
    """Compare the watermarks of a topic with the offsets that `group` has committed and the offsets that the ledger counts.

    The two differ in two cases: an idle worker commits offsets after commit markers, and Kafka deletes the offsets of a
    group that has had no members for some days.
    """
    ranges: dict[Place, Span] = {}
    problems: list[str] = []
    deleted = 0
    for place, mark in marks.items():
        own, known = committed.get(place, 0), counted.get(place, 0)
        if own > mark.end:
            problems.append(
                f"{place[0]}-{place[1]}: group {group} has read up to {own}, but the partition ends at {mark.end}: the topic "
                "was created again or has lost records; a worker reads it again from the start"
            )
            own = 0
        position = max(own, known if known <= mark.end else 0)
        deleted += max(0, mark.low - position)
        ranges[place] = Span(max(position, mark.low), mark.end)
    return UnreadRanges(ranges, deleted, tuple(problems))


def uncounted_ranges(
    marks: Mapping[Place, Watermarks], committed: Mapping[Place, int], counted: Mapping[Place, int], is_complete: bool
) -> dict[Place, Span]:
    """Return ranges that a group has passed without a ledger entry. A record in such a range is unaccounted for."""
    found = {}
    for place, mark in marks.items():
        if place in counted or is_complete:
            span = Span(max(mark.low, counted.get(place, 0)), min(mark.end, committed.get(place, 0)))
            if not span.is_empty:
                found[place] = span
    return found


def width_outside(gaps: Iterable[Range], read: Iterable[Range]) -> int:
    """Return how many offsets are in `gaps` but not in `read`. Offsets read before retention deleted them count as read."""
    edges = sorted(
        [edge for first, following in gaps for edge in ((first, 1, 0), (following, -1, 0))]
        + [edge for first, following in read for edge in ((first, 0, 1), (following, 0, -1))]
    )
    width = gaps_open = reads_open = last = 0
    for offset, gap_step, read_step in edges:
        if gaps_open and not reads_open:
            width += offset - last
        gaps_open, reads_open, last = gaps_open + gap_step, reads_open + read_step, offset
    return width
