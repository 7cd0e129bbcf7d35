"""Counts outcomes of deliveries after their transaction is committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import Counter as Metric

DELIVERY_OUTCOMES = Metric(
    "hitrouter_delivery_outcomes",
    "Hits by outcome: delivered, rejected, skipped, or set_aside for a later attempt.",
    ["connection", "outcome"],
)


def count_outcomes(connection: str, outcomes: Iterable[str]) -> None:
    """Add hits of `connection` to the metric; `outcomes` holds the name of each hit's outcome."""
    for outcome, count in Counter(outcomes).items():
        DELIVERY_OUTCOMES.labels(connection, outcome).inc(count)
