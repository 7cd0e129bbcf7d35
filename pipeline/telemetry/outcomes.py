"""Outcomes of deliveries, counted once their transaction is committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import Counter as Metric

DELIVERY_OUTCOMES = Metric(
    "hitrouter_delivery_outcomes",
    "Hits by what became of them: delivered, rejected, skipped, or set_aside for now.",
    ["connection", "outcome"],
)


def count_outcomes(connection: str, outcomes: Iterable[str]) -> None:
    """`outcomes` are their names."""
    for outcome, count in Counter(outcomes).items():
        DELIVERY_OUTCOMES.labels(connection, outcome).inc(count)
