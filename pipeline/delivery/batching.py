"""Divides events into requests and lanes, by identity, group, count and bytes."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from pipeline.delivery.lanes import Chunk, Item, Lane
from pipeline.delivery.refusals import Settled
from pipeline.destination import Event, Limits, Rejected, Skipped

_OVERHEAD_BYTES = 64
"""Overhead of a request per event: commas, brackets, and a share of the envelope."""


def chunks_of(events: Sequence[Event | Skipped | Rejected], limits: Limits) -> tuple[list[Chunk], dict[int, Rejected]]:
    """Return the positions of each request, and by position the rejections of events that are too large for any request."""
    lanes, refused = lanes_of(events, range(len(events)), limits, 1)
    return [chunk for lane in lanes for chunk in lane], refused


def lanes_of(
    events: Sequence[Event | Settled], keys: Sequence[Hashable], limits: Limits, most: int
) -> tuple[list[Lane], dict[int, Rejected]]:
    """Return at most `most` lanes of requests, and by position the rejections of events that are too large for any request.

    Lanes are sent in parallel, the requests of one lane one after the other. Events with the same key share a lane and keep their
    order. There are no more lanes than full requests, so that a few events still share one request.
    """
    refused: dict[int, Rejected] = {}
    placed: list[int] = []
    total_bytes = 0
    for position, event in enumerate(events):
        if not isinstance(event, Event):
            continue
        rejected = too_large(event, limits)
        if rejected is not None:
            refused[position] = rejected
            continue
        total_bytes += len(event.body) + _OVERHEAD_BYTES
        placed.append(position)
    groups = len({event.group for event in (events[position] for position in placed) if isinstance(event, Event)})
    needed = max(groups, -(-len(placed) // limits.events), -(-total_bytes // limits.request_bytes))
    lanes = [_Lane(limits) for _ in range(min(most, needed))]
    lane_of = _assign_lanes(Counter(keys[position] for position in placed), len(lanes))
    for position in placed:
        event = events[position]
        assert isinstance(event, Event)
        lanes[lane_of[keys[position]]].add(position, event, keys[position])
    return [lane.chunks for lane in lanes if lane.chunks], refused


def too_large(event: Event, limits: Limits) -> Rejected | None:
    """Return the rejection of an event that exceeds the size limit of a request; None if it fits."""
    if len(event.body) + _OVERHEAD_BYTES <= limits.request_bytes:
        return None
    return Rejected("too_large", f"{len(event.body)} bytes; the destination accepts {limits.request_bytes} per request")


def _assign_lanes(events_by_key: Counter[Hashable], lanes: int) -> dict[Hashable, int]:
    """Assign each key to a lane, balanced: keys with the most events first, each to the shortest lane."""
    loads = [(0, lane) for lane in range(lanes)]
    lane_of: dict[Hashable, int] = {}
    for key, count in events_by_key.most_common():
        load, lane = loads[0]
        lane_of[key] = lane
        heapq.heapreplace(loads, (load + count, lane))
    return lane_of


def lane_per_partition(partitions: Iterable[Sequence[Item | Rejected]]) -> tuple[list[Item | Rejected], list[Lane]]:
    """Return the items of all partitions in order, and one lane per partition. Its only chunk has all items that are not rejected."""
    items: list[Item | Rejected] = []
    lanes: list[Lane] = []
    for part in partitions:
        chunk = [position for position, item in enumerate(part, len(items)) if not isinstance(item, Rejected)]
        if chunk:
            lanes.append([chunk])
        items += part
    return items, lanes


class _Lane:
    """Fills requests in order of arrival."""

    def __init__(self, limits: Limits) -> None:
        self.chunks: list[Chunk] = []
        self._limits = limits
        self._open: dict[Hashable, tuple[int, int]] = {}
        """The request of each group that still has room, and its size in bytes."""
        self._last: dict[Hashable, int] = {}
        """The request with the latest event of each key; later events must not be sent before it."""

    def add(self, position: int, event: Event, key: Hashable) -> None:
        size = len(event.body) + _OVERHEAD_BYTES
        number, held = self._open.get(event.group, (-1, 0))
        full = number < 0 or len(self.chunks[number]) >= self._limits.events or held + size > self._limits.request_bytes
        if full or number < self._last.get(key, -1):
            number, held = len(self.chunks), 0
            self.chunks.append([])
        self.chunks[number].append(position)
        self._open[event.group] = (number, held + size)
        self._last[key] = number
