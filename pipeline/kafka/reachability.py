"""Whether Kafka answers: two failed questions in a row mean that it is away, one answer that it is back."""

from __future__ import annotations

from collections.abc import Iterator

from confluent_kafka import KafkaException, Producer

from pipeline.telemetry.readiness import Condition, State

ASK_SECONDS = 2.0
"""How long an answer may take."""
AGAIN_SECONDS = 0.5
"""The pause after a question that failed."""
PAUSE_SECONDS = 2.0
"""The pause after an answer."""
_AWAY_AFTER = 2


class Reachability:
    """The answers so far. One thread observes, any thread reads; `now` is a reading of time.monotonic()."""

    def __init__(self) -> None:
        self._failures = 0
        self._since = 0.0
        self._why = ""

    def observe(self, problem: str | None, now: float) -> None:
        """Note one answer: `problem` is why Kafka can't be used, None when it can."""
        if problem is None:
            self._failures = 0
            return
        if not self._failures:
            self._since = now
        self._why = problem
        self._failures += 1

    @property
    def pause_seconds(self) -> float:
        """When to ask again."""
        return AGAIN_SECONDS if self._failures else PAUSE_SECONDS

    @property
    def problem(self) -> str | None:
        """Why Kafka is away; None while it is not."""
        return self._why if self._failures >= _AWAY_AFTER else None

    @property
    def since(self) -> float:
        """When the first of the failures in a row was seen."""
        return self._since

    def conditions(self, _: float) -> Iterator[Condition]:
        """The line of /readyz."""
        problem = self.problem
        if problem is not None:
            yield Condition("kafka", State.AWAY, problem, self._since)


def unreachable(producer: Producer, topic: str, timeout_seconds: float = ASK_SECONDS) -> str | None:
    """Why nothing can be written to `topic` now; None when it can. Blocks; any thread may call.

    `topic` must exist: Kafka may be set up to create topics that somebody asks for.
    """
    try:
        found = producer.list_topics(topic, timeout=timeout_seconds).topics[topic]
    except KafkaException as error:
        return f"no broker answers: {error.args[0].str()}"
    if found.error is not None:
        return f"topic {topic}: {found.error.str()}"
    # With some leaders missing, records still reach the other partitions.
    if all(partition.leader < 0 for partition in found.partitions.values()):
        return f"no partition of topic {topic} has a leader"
    return None
