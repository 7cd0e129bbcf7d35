"""Tests that texts are read as amounts only if they are unambiguous."""

from __future__ import annotations

import pytest

from pipeline.destination.amounts import read_amount

# fmt: off
UNAMBIGUOUS = [
    ("0", 0), ("2", 2), ("-5", -5), ("+5", 5), (" 649,75\n", 649.75), ("600.00", 600.0), ("\u22121,5", -1.5),
    ("1299.5", 1299.5), ("1299.0000", 1299.0), ("1299,500", 1299.5), ("0.125", 0.125), (".5", 0.5), ("1e3", 1000.0),
    ("1 299,50", 1299.5), ("1\u00a0299,50", 1299.5), ("1\u202f299,50", 1299.5), ("1\u2009299.50", 1299.5),
    ("1,299.50", 1299.5), ("1.299,50", 1299.5), ("1'299.50", 1299.5), ("1\u2019299.50", 1299.5), ("1 299", 1299),
    ("1,299,000", 1_299_000), ("1.299.000", 1_299_000), ("12 345 678,9", 12_345_678.9), ("1 299.500", 1299.5),
]
UNREADABLE = [
    "", " ", "-", "x", "€ 12", "12 EUR", "NaN", "Infinity", "1e400", "0x10", "1_000", "٣", "1" * 41,
    "1,299", "1.299", "12.345", "999,000", "12 34", "1,29.5", "1.2.3", "1,299.", "1 2,3", "1.299 50", "--1", "1,299.50.1",
]
# fmt: on


@pytest.mark.parametrize(("text", "number"), UNAMBIGUOUS)
def test_unambiguous_amount_is_read(text: str, number: float) -> None:
    read = read_amount(text)
    assert (read, type(read)) == (number, type(number))


@pytest.mark.parametrize("text", UNREADABLE)
def test_ambiguous_or_invalid_amount_is_not_read(text: str) -> None:
    assert read_amount(text) is None
