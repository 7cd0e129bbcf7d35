"""Counts of texts that senders choose, bounded in number. The sum of a group never changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

OTHERS = "others"
"""The detail under which the rare details of a group are summed."""

_Key = TypeVar("_Key", bound=Hashable)


def fold_rare(counts: Counter[_Key], most: int, others_of: Callable[[_Key], _Key]) -> None:
    """Keep the `most` most frequent keys of each group in place, and sum the rest under `others_of(key)`.

    `others_of` returns the same key for all keys of one group. After several folds the count of a kept key is a lower bound.
    """
    if len(counts) <= most:
        return
    groups: dict[_Key, list[_Key]] = {}
    for key in counts:
        others = others_of(key)
        if key != others:
            groups.setdefault(others, []).append(key)
    for others, keys in groups.items():
        if len(keys) > most:
            keys.sort(key=counts.__getitem__, reverse=True)
            counts[others] += sum(counts.pop(key) for key in keys[most:])


class CountsFolder(Generic[_Key]):
    """Keeps a counter small while it is being filled. Each fold at least halves the counter, or doubles its room."""

    def __init__(self, counts: Counter[_Key], most: int, others_of: Callable[[_Key], _Key]) -> None:
        self._counts = counts
        self._most = most
        self._others_of = others_of
        self._room = 2 * most

    def fold(self) -> None:
        """Call this after each addition of several keys; it does nothing while there is room."""
        if len(self._counts) > self._room:
            fold_rare(self._counts, self._most, self._others_of)
            self._room = max(2 * self._most, 2 * len(self._counts))
