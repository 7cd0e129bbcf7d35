"""When a client that only fails is replaced: pure."""

from __future__ import annotations

from pipeline.kafka.stuck import StuckWatch


def renewals(watch: StuckWatch, seconds: int, works_at: frozenset[int] = frozenset()) -> list[int]:
    """The seconds at which one outcome a second demands a new client."""
    return [second for second in range(seconds) if watch.observe(second in works_at, float(second))]


def test_failures_alone_demand_a_new_client_ever_more_rarely() -> None:
    assert renewals(StuckWatch(), 300) == [15, 45, 105, 165, 225, 285]


def test_one_success_in_between_starts_the_count_again() -> None:
    assert renewals(StuckWatch(), 60, frozenset({14, 28, 42})) == [58]


def test_a_client_that_works_is_kept() -> None:
    assert renewals(StuckWatch(), 300, frozenset(range(300))) == []
