"""Tests of the progress of a role according to the ledger."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipeline.codec.ledger_entry import LedgerEntry
from pipeline.kafka.lost_offsets import progress_in


def entry(role: Any, topic: str, partition: int, next_offset: int) -> LedgerEntry:
    return LedgerEntry(role, topic, partition, 0, next_offset, 0, Counter())


def test_the_highest_offset_of_the_role_and_topic_counts() -> None:
    entries = [
        entry("deliver", "deliveries-a", 0, 7),
        entry("deliver", "deliveries-a", 0, 5),
        entry("deliver", "deliveries-a", 1, 2),
        entry("deliver", "deliveries-b", 0, 90),
        entry("route", "deliveries-a", 0, 91),
        entry("pause", "deliveries-a", 0, 92),
    ]
    assert progress_in(entries, "deliver", "deliveries-a") == {0: 7, 1: 2}


def test_a_role_without_entries_has_no_progress() -> None:
    assert progress_in([entry("route", "hits-raw", 0, 7)], "deliver", "hits-raw") == {}
