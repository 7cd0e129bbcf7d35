"""Bounds the number of counted keys that senders choose. The sum of each group never changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

OTHERS = "others"
"""The key part under which the rare keys of a group are summed."""

_Key = TypeVar("_Key", bound=Hashable)


def fold_rare(counts: Counter[_Key], most: int, others_of: Callable[[_Key], _Key]) -> None:
    """Keep the `most` most frequent keys of each group, and sum the rest under `others_of(key)`; changes `counts` in place.

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
    """Keeps a counter small while it is filled. Each fold at least halves the counter, or raises the limit for the next fold."""

    def __init__(self, counts: Counter[_Key], most: int, others_of: Callable[[_Key], _Key]) -> None:
        self._counts = counts
        self._most = most
        self._others_of = others_of
        self._room = 2 * most

    def fold(self) -> None:
        """Fold if the limit is exceeded; call it after each addition of several keys."""
        if len(self._counts) > self._room:
            fold_rare(self._counts, self._most, self._others_of)
            self._room = max(2 * self._most, 2 * len(self._counts))
