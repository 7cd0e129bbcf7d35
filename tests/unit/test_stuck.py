"""Tests of when a client whose calls all fail is replaced."""

from __future__ import annotations

from pipeline.kafka.stuck import StuckWatch


def renewals(watch: StuckWatch, seconds: int, works_at: frozenset[int] = frozenset()) -> list[int]:
    """The seconds at which one outcome a second demands a new client."""
    return [second for second in range(seconds) if watch.observe(second in works_at, float(second))]


def test_a_client_without_a_success_is_replaced_at_growing_intervals() -> None:
    assert renewals(StuckWatch(), 300) == [15, 45, 105, 165, 225, 285]


def test_a_success_resets_the_interval() -> None:
    assert renewals(StuckWatch(), 60, frozenset({14, 28, 42})) == [58]


def test_a_working_client_is_kept() -> None:
    assert renewals(StuckWatch(), 300, frozenset(range(300))) == []
