"""Whether the intake could store a hit now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.telemetry.readiness import Condition, State


@dataclass(frozen=True, slots=True)
class Spill:
    """The spill log: why it takes nothing, None when it has room; and the bytes that wait in it for Kafka."""

    problem: str | None
    waiting_bytes: int


@dataclass(frozen=True, slots=True)
class Stores:
    """Where hits could go. A problem is the reason why not, None when there is none; `spill` is None with `reject`.

    `kafka_since` is when the problem of Kafka began, a reading of time.monotonic(), where that is known.
    """

    topics_problem: str | None
    kafka_problem: str | None
    kafka_since: float | None
    spill: Spill | None


def conditions_of(stores: Stores) -> Iterator[Condition]:
    """The lines of /readyz. The intake is ready while Kafka or the spill log takes hits."""
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
