"""The seen store of one partition of hits-raw: the ids within the window (contract.md, section 5).

Time is the broker's append time, divided into spans of a third of the window. Each span has one table, and expiry drops whole
tables. So an id is kept for at least the window, and for at most a third longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.codec.seen_block import Ids, Marks
from pipeline.stages.id_table import ABSENT, Found, IdTable

SPANS_PER_WINDOW = 3


class SeenStore:
    """Ids of one partition by span of time. `window_ms` > 0.

    Common ids are those of a release without namespaces (pipeline/stages/deduplicate.py); they expire in the same way.
    """

    def __init__(self, window_ms: int) -> None:
        self._span_ms = max(1, -(-window_ms // SPANS_PER_WINDOW))
        self._tables: dict[int, IdTable] = {}
        self._common_tables: dict[int, IdTable] = {}
        self._newest = 0

    def __len__(self) -> int:
        return sum(map(len, self._all_tables()))

    @property
    def memory_bytes(self) -> int:
        """Memory of the ids."""
        return sum(table.memory_bytes for table in self._all_tables())

    @property
    def has_common_ids(self) -> bool:
        """Whether the store holds common ids."""
        return bool(self._common_tables)

    def span(self, appended_ms: int) -> int:
        """Return the number of the span of this append time."""
        return appended_ms // self._span_ms

    def find(self, ids: Ids, span: int) -> Found:
        """Return the mark of each id within the window of records appended in `span`, else ABSENT."""
        found = _find(self._tables, ids, span)
        if self._common_tables:
            np.maximum(found, self.find_common(ids, span), out=found)
        return found

    def find_common(self, ids: Ids, span: int) -> Found:
        """As `find`, among the common ids alone."""
        return _find(self._common_tables, ids, span)

    def add(self, ids: Ids, marks: Marks, appended_ms: int, advances: bool = True, is_common: bool = False) -> None:
        """Add `ids`, which must not be in the store, as appended at `appended_ms`; drop expired spans.

        The window ends at the newest id of the partition. `advances` is False for ids of another partition, which may be ahead:
        they do not move the window.
        """
        span = self.span(appended_ms)
        if advances:
            self._newest = max(self._newest, span)
        if span < self._newest - SPANS_PER_WINDOW:
            return
        tables = self._common_tables if is_common else self._tables
        tables.setdefault(span, IdTable()).add(ids, marks)
        self._tables, self._common_tables = self._within_window(self._tables), self._within_window(self._common_tables)

    def _within_window(self, tables: dict[int, IdTable]) -> dict[int, IdTable]:
        oldest = self._newest - SPANS_PER_WINDOW
        if tables and min(tables) < oldest:
            return {span: table for span, table in tables.items() if span >= oldest}
        return tables

    def _all_tables(self) -> Iterator[IdTable]:
        yield from self._tables.values()
        yield from self._common_tables.values()


def _find(tables: Mapping[int, IdTable], ids: Ids, span: int) -> Found:
    oldest = span - SPANS_PER_WINDOW
    found = np.full(len(ids), ABSENT, np.int32)
    for number, table in tables.items():
        if number >= oldest:
            np.maximum(found, table.find(ids), out=found)
    return found
