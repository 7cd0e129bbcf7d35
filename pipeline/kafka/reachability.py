"""Tracks whether Kafka is available: two failed checks in a row mean unavailable, one success means available."""

from __future__ import annotations

from collections.abc import Iterator

from confluent_kafka import KafkaException, Producer

from pipeline.telemetry.readiness import Condition, State

ASK_SECONDS = 2.0
"""Timeout of one check."""
AGAIN_SECONDS = 0.5
"""Pause after a failed check."""
PAUSE_SECONDS = 2.0
"""Pause after a successful check."""
_AWAY_AFTER = 2


class Reachability:
    """The results of checks. One thread calls `observe`, any thread reads; `now` is a value of time.monotonic()."""

    def __init__(self) -> None:
        self._failures = 0
        self._since = 0.0
        self._why = ""

    def observe(self, problem: str | None, now: float) -> None:
        """Record one result: `problem` is why Kafka cannot be used, or None."""
        if problem is None:
            self._failures = 0
            return
        if not self._failures:
            self._since = now
        self._why = problem
        self._failures += 1

    @property
    def pause_seconds(self) -> float:
        """Seconds until the next check."""
        return AGAIN_SECONDS if self._failures else PAUSE_SECONDS

    @property
    def problem(self) -> str | None:
        """Why Kafka is unavailable; None while it is available."""
        return self._why if self._failures >= _AWAY_AFTER else None

    @property
    def since(self) -> float:
        """Time of the first of the consecutive failures."""
        return self._since

    def conditions(self, _: float) -> Iterator[Condition]:
        """Yield the condition for /readyz."""
        problem = self.problem
        if problem is not None:
            yield Condition("kafka", State.AWAY, problem, self._since)


def unreachable(producer: Producer, topic: str, timeout_seconds: float = ASK_SECONDS) -> str | None:
    """Return why nothing can be written to `topic` now, or None. Blocks; any thread may call it.

    `topic` must exist, since this request may create it if the broker creates topics automatically.
    """
    try:
        found = producer.list_topics(topic, timeout=timeout_seconds).topics[topic]
    except KafkaException as error:
        return f"no broker responds: {error.args[0].str()}"
    if found.error is not None:
        return f"topic {topic}: {found.error.str()}"
    # If only some leaders are missing, the other partitions still accept records.
    if all(partition.leader < 0 for partition in found.partitions.values()):
        return f"no partition of topic {topic} has a leader"
    return None
