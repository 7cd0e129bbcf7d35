"""Rebuilds the seen stores of the owned partitions from the blocks of all partitions. Pure: blocks in, stores out.

An id belongs to the partition of its key, which changes when hits-raw gets more partitions. Each block holds the number of
partitions under which its ids were accepted, and their key hashes. So a store takes exactly the ids that belong to it under the
current number, from blocks of any partition. It holds no more ids after such a change than without one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pipeline.codec.seen_block import Ids, Marks, SeenBlock
from pipeline.stages.seen_store import SeenStore

_GATHERED_IDS = 500_000
"""Most ids that are buffered before they are added to the stores (11 MB). Added singly, small blocks cost 20 us each."""
_UNKNOWN = 0


class SeenRebuild:
    """Builds the stores of the `owned` partitions. `partitions` is the current number of partitions of hits-raw."""

    def __init__(self, window_ms: int, owned: Collection[int], partitions: int) -> None:
        self._stores = {partition: SeenStore(window_ms) for partition in owned}
        self._partitions = partitions
        # Keyed by span of time and `is_common`, which select the table within a store.
        self._placed: dict[tuple[int, int, bool], list[SeenBlock]] = {}
        self._moved: dict[tuple[int, bool], list[SeenBlock]] = {}
        self._gathered = 0
        self.most_partitions = partitions
        """The largest number of partitions of any block."""

    def is_current(self, block_partitions: int) -> bool:
        """Return whether ids of a block are in their current partition; assumed for older blocks without a number."""
        return block_partitions in (_UNKNOWN, self._partitions)

    def add(self, partition: int, block: SeenBlock) -> None:
        """Add the ids of a block of `partition` of seen-hits that belong to owned partitions."""
        self.most_partitions = max(self.most_partitions, block.partitions)
        if not self._stores:
            return
        span = next(iter(self._stores.values())).span(block.last_ms)
        if not self.is_current(block.partitions):
            self._moved.setdefault((span, block.is_common), []).append(block)
        elif partition in self._stores:
            self._placed.setdefault((partition, span, block.is_common), []).append(block)
        else:
            return
        self._gathered += len(block.ids)
        if self._gathered >= _GATHERED_IDS:
            self._settle()

    def finish(self) -> dict[int, SeenStore]:
        """Return the stores by partition."""
        self._settle()
        return self._stores

    def _settle(self) -> None:
        for (partition, _, is_common), blocks in self._placed.items():
            self._stores[partition].add(
                _joined_ids(blocks), _joined_marks(blocks), blocks[-1].last_ms, is_common=is_common
            )
        for (_, is_common), blocks in self._moved.items():
            self._place(blocks, is_common)
        self._placed, self._moved, self._gathered = {}, {}, 0

    def _place(self, blocks: Sequence[SeenBlock], is_common: bool) -> None:
        owners = np.concatenate([block.hashes for block in blocks]) % np.uint32(self._partitions)
        order = np.argsort(owners, kind="stable")
        ids, marks = _joined_ids(blocks)[order], _joined_marks(blocks)[order]
        present, starts = np.unique(owners[order], return_index=True)
        for owner, start, stop in zip(present.tolist(), starts, [*starts[1:], len(ids)], strict=True):
            if owner in self._stores:
                part = slice(start, stop)
                self._stores[owner].add(ids[part], marks[part], blocks[-1].last_ms, advances=False, is_common=is_common)


def _joined_ids(blocks: Sequence[SeenBlock]) -> Ids:
    return np.concatenate([block.ids for block in blocks])


def _joined_marks(blocks: Sequence[SeenBlock]) -> Marks:
    return np.concatenate([block.marks for block in blocks])
