"""The seen store of one raw partition: which ids the window holds (contract.md, section 5).

Time is the broker's append time, cut into spans of a third of the window, one table each: expiry drops a whole table. An id is
therefore remembered for the window at least and for a third more at most.
"""

from __future__ import annotations

import numpy as np

from pipeline.codec.seen_block import Ids, SeenBlock
from pipeline.stages.id_table import Flags, IdTable

SPANS_PER_WINDOW = 3


class SeenStore:
    """Ids of one partition by span of time. `window_ms` > 0."""

    def __init__(self, window_ms: int) -> None:
        self._span_ms = max(1, -(-window_ms // SPANS_PER_WINDOW))
        self._tables: dict[int, IdTable] = {}
        self._newest = 0

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    @property
    def memory_bytes(self) -> int:
        """Memory that the ids take."""
        return sum(table.memory_bytes for table in self._tables.values())

    def span(self, appended_ms: int) -> int:
        """The number of the span that holds this append time."""
        return appended_ms // self._span_ms

    def contains(self, ids: Ids, span: int) -> Flags:
        """One flag per row: is the id within the window of records that were appended in `span`?"""
        oldest = span - SPANS_PER_WINDOW
        found = np.zeros(len(ids), np.bool_)
        for span, table in self._tables.items():
            if span >= oldest:
                found |= table.contains(ids)
        return found

    def add(self, ids: Ids, appended_ms: int) -> None:
        """Remember `ids`, which are not in the store, as appended at `appended_ms`; forget what the window left behind."""
        span = self.span(appended_ms)
        self._newest = max(self._newest, span)
        if span < self._newest - SPANS_PER_WINDOW:
            return
        self._tables.setdefault(span, IdTable()).add(ids)
        if min(self._tables) < self._newest - SPANS_PER_WINDOW:
            self._tables = {s: t for s, t in self._tables.items() if s >= self._newest - SPANS_PER_WINDOW}

    def add_block(self, block: SeenBlock) -> None:
        """Take over a block of `seen-hits`."""
        self.add(block.ids, block.last_ms)
