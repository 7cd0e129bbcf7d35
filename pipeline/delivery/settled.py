"""Outcomes that may not be committed yet: a record that is read again after an abort is not sent again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import Message
from faust.types import TP

from pipeline.delivery.refusals import FinalOutcome, Settled


class _Settled(NamedTuple):
    """`print` tells the record from another one at the same offset of a topic that was made anew."""

    print: tuple[int, int]
    outcome: Settled


class SettledOutcomes:
    """By partition and offset, at most `most`; the oldest go first.

    An abort or a lost session of the same process costs no repeat. A crash does, and so does a partition that moves to another
    worker before the commit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[tuple[TP, int], _Settled] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def recall(self, tp: TP, record: Message) -> Settled | None:
        """Return the outcome of this very record, if it has one."""
        found = self._kept.get((tp, record.offset() or 0))
        return found.outcome if found is not None and found.print == _print(record) else None

    def keep(self, tp: TP, records: Sequence[Message], outcomes: Sequence[FinalOutcome | None]) -> None:
        """Remember the outcomes of `records`; what lies below the first of them is committed, and forgotten."""
        first = (records[0].offset() or 0) if records else 0
        for place in [place for place in self._kept if place[0] == tp and place[1] < first]:
            del self._kept[place]
        for record, outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, Settled):
                place = (tp, record.offset() or 0)
                self._kept.pop(place, None)
                self._kept[place] = _Settled(_print(record), outcome)
        while len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]


def settled_first(outcomes: Sequence[FinalOutcome | None]) -> int:
    """Return how many outcomes stand before the first that is missing: only these may be committed."""
    for count, outcome in enumerate(outcomes):
        if outcome is None:
            return count
    return len(outcomes)


def _print(record: Message) -> tuple[int, int]:
    return record.timestamp()[1], hash((record.key(), record.value()))
