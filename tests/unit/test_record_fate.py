"""The fate of a record that retention has deleted, from ledger entries about its partition."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.codec.ledger_entry import Entry, LedgerEntry, expired_entry
from pipeline.operations.record_fate import RecordFate

WRITTEN = 10_000_000
BEFORE, AFTER = WRITTEN - 3_600_000, WRITTEN + 3_600_000


def read(first: int, following: int, at_ms: int) -> LedgerEntry:
    counts = Counter({Entry("shop", "crm", "delivered"): following - first})
    return LedgerEntry("deliver", "deliveries-crm", 0, first, following, at_ms, counts)


def taken(first: int, following: int, at_ms: int) -> LedgerEntry:
    return expired_entry("deliver", "deliveries-crm", 0, first, following, at_ms, "crm")


@pytest.mark.parametrize(
    ("entries", "low", "committed", "expected"),
    [
        ([read(0, 10, BEFORE), taken(11, 30, AFTER)], 30, 30, "expired"),
        ([read(0, 10, BEFORE)], 30, 10, "expired"),  # no worker has recorded the deletion yet
        ([read(0, 10, BEFORE), read(11, 40, AFTER)], 30, 40, "read"),
        ([read(0, 10, BEFORE), read(11, 20, AFTER), taken(20, 30, AFTER)], 30, 30, "unknown"),
        ([read(0, 10, BEFORE), read(11, 20, AFTER)], 30, 20, "unknown"),
        ([read(0, 10, BEFORE), read(11, 20, BEFORE), taken(20, 30, AFTER)], 30, 30, "expired"),
        ([taken(0, 30, BEFORE), read(31, 40, AFTER)], 30, 40, "never written"),
        ([read(0, 10, BEFORE), read(35, 40, AFTER), taken(11, 30, AFTER)], 30, 40, "expired"),
        ([], 30, 40, "unknown"),  # the entries of the ledger were deleted
        ([read(0, 10, WRITTEN - 1000), taken(11, 30, AFTER)], 30, 30, "unknown"),  # clocks differ
    ],
)
def test_fate_follows_from_ledger_entries_and_watermark(
    entries: list[LedgerEntry], low: int, committed: int, expected: str
) -> None:
    fate = RecordFate(WRITTEN, low, committed)
    for entry in entries:
        fate.add(entry)
    assert fate.fate == expected
