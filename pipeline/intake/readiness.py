"""The intake's conditions of /readyz: whether it can store a hit now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.telemetry.readiness import Condition, State


@dataclass(frozen=True, slots=True)
class Spill:
    """State of the spill log. `problem` is None while it has room; `waiting_bytes` are not in Kafka yet."""

    problem: str | None
    waiting_bytes: int


@dataclass(frozen=True, slots=True)
class Stores:
    """State of all stores. A problem is a reason, or None; `spill` is None with `on_kafka_failure: reject`.

    `kafka_since` is when the problem of Kafka began, by time.monotonic(), or None if unknown.
    """

    topics_problem: str | None
    kafka_problem: str | None
    kafka_since: float | None
    spill: Spill | None


def conditions_of(stores: Stores) -> Iterator[Condition]:
    """Yield the lines of /readyz. The intake is ready while Kafka or the spill log accepts hits."""
    problem = stores.topics_problem or stores.kafka_problem
    if problem is None:
        return
    if stores.spill is not None and stores.spill.problem is None:
        reason = f"{problem}; hits go to this machine's disk, where {stores.spill.waiting_bytes} bytes wait"
        yield Condition("kafka", State.SPILLING, reason, stores.kafka_since)
        return
    if stores.spill is not None and stores.spill.problem is not None:
        yield Condition("spill", State.FULL, stores.spill.problem)
    if stores.topics_problem is not None:
        yield Condition("topics", State.UNCHECKED, stores.topics_problem)
    if stores.kafka_problem is not None:
        yield Condition("kafka", State.AWAY, stores.kafka_problem, stores.kafka_since)
