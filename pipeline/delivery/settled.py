"""Keeps outcomes until they are committed, so that a record that is read again after an abort is not sent again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import Message
from faust.types import TP

from pipeline.delivery.refusals import FinalOutcome, Settled


class _Settled(NamedTuple):
    """An outcome. `fingerprint` detects another record at the same offset, after the topic was deleted and created again."""

    fingerprint: tuple[int, int]
    outcome: Settled


class SettledOutcomes:
    """Outcomes by partition and offset: at most `most`, the oldest are evicted first.

    They prevent repeats after an abort or a lost session of the same process. After a crash, or if a partition moves to another
    worker before the commit, requests are repeated.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[tuple[TP, int], _Settled] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, tp: TP, record: Message) -> Settled | None:
        """Return the kept outcome of exactly this record, or None."""
        found = self._kept.get((tp, record.offset() or 0))
        return found.outcome if found is not None and found.fingerprint == _fingerprint(record) else None

    def keep(self, tp: TP, records: Sequence[Message], outcomes: Sequence[FinalOutcome | None]) -> None:
        """Keep the outcomes of `records`. Drop those below the first record, since they are committed."""
        first = (records[0].offset() or 0) if records else 0
        for place in [place for place in self._kept if place[0] == tp and place[1] < first]:
            del self._kept[place]
        for record, outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, Settled):
                place = (tp, record.offset() or 0)
                self._kept.pop(place, None)
                self._kept[place] = _Settled(_fingerprint(record), outcome)
        while len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]


def settled_count(outcomes: Sequence[FinalOutcome | None]) -> int:
    """Return the number of outcomes before the first missing one; only these may be committed."""
    for count, outcome in enumerate(outcomes):
        if outcome is None:
            return count
    return len(outcomes)


def _fingerprint(record: Message) -> tuple[int, int]:
    return record.timestamp()[1], hash((record.key(), record.value()))
