"""What became of the hits of one connection that have no outcome: they wait, they expired, or they are missing. Pure.

The ledger counts hits; Kafka counts offsets, of which some hold commit markers or aborted records. So a number of
offsets is an upper bound of hits, and the exact numbers need the records that wait, counted.
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
    """`expired` <= the hits that retention took before delivery <= `expired_at_most`; `missing` are unexplained.

    `earlier` are hits whose routing the ledger's own retention took: it has their outcome, or they still wait.
    """

    expired: int = 0
    expired_at_most: int = 0
    earlier: int = 0
    missing: int = 0


def settle(outstanding: int, taken: int, waiting: int, is_exact: bool, is_complete: bool) -> Settlement:
    """Explain `outstanding` hits: the routed ones minus those with an outcome.

    `taken` offsets were removed by retention before they were read. `waiting` is how many records can still be read: the
    number itself where `is_exact`, else an upper bound. `is_complete` is False when the ledger has lost its oldest
    entries: then `outstanding` is a lower bound, because routing comes before its outcomes.
    """
    unexplained = max(0, outstanding - waiting)
    expired = min(unexplained, taken)
    missing = unexplained - expired
    if is_complete:
        at_most = expired if is_exact else min(taken, max(0, outstanding))
        return Settlement(expired, max(expired, at_most), 0, missing)
    earlier = max(0, waiting + expired + missing - outstanding)
    return Settlement(expired, taken, earlier, missing)


@dataclass(frozen=True, slots=True)
class Unread:
    """What a group has not read of a topic: `ranges` by partition, and how many offsets retention has taken unread."""

    ranges: Mapping[Place, Span]
    taken: int
    problems: tuple[str, ...] = ()


def unread(
    marks: Mapping[Place, Watermarks], committed: Mapping[Place, int], counted: Mapping[Place, int], group: str
) -> Unread:
    """Compare the watermarks of a topic with what its group has committed and with what the ledger has counted.

    Both say the same, but for two cases: an idle worker commits behind commit markers, and Kafka forgets the offsets of a
    group that has been away for some days.
    """
    ranges: dict[Place, Span] = {}
    problems: list[str] = []
    taken = 0
    for place, mark in marks.items():
        own, known = committed.get(place, 0), counted.get(place, 0)
        if own > mark.end:
            problems.append(
                f"{place[0]}-{place[1]}: group {group} has read up to {own}, but the partition ends at {mark.end}: the topic "
                "was made anew or lost records; a worker reads it again from its beginning"
            )
            own = 0
        position = max(own, known if known <= mark.end else 0)
        taken += max(0, mark.low - position)
        ranges[place] = Span(max(position, mark.low), mark.end)
    return Unread(ranges, taken, tuple(problems))


def uncounted(
    marks: Mapping[Place, Watermarks], committed: Mapping[Place, int], counted: Mapping[Place, int], is_complete: bool
) -> dict[Place, Span]:
    """Ranges that a group has passed although no ledger entry counts them; a record in one of them is unaccounted for."""
    found = {}
    for place, mark in marks.items():
        if place in counted or is_complete:
            span = Span(max(mark.low, counted.get(place, 0)), min(mark.end, committed.get(place, 0)))
            if not span.is_empty:
                found[place] = span
    return found


def width_outside(gaps: Iterable[Range], read: Iterable[Range]) -> int:
    """How many offsets are in `gaps` and not in `read`: what was read before retention took it counts as read."""
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
