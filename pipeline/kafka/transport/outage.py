"""Detects consumers that do not reconnect after an outage, or never get an assignment. Used on the poll thread only."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException

from pipeline.config.models import KafkaConfig
from pipeline.kafka.new_client import new_client_reaches
from pipeline.kafka.patience import OUTAGES
from pipeline.kafka.stuck import LostClient

_ASK_SECONDS = 0.5
_ASK_EVERY_SECONDS = 1.0
"""Interval at which a consumer that has reported an outage checks whether it is over."""
_LOST_EVERY_SECONDS = 5.0
"""Interval at which a new client checks whether Kafka responds to it."""
_JOIN_SECONDS = 30.0
"""A group waits 20 s for a dead member (max.poll.interval.ms), and a group coordinator takes some seconds to load."""
_LONGEST_JOIN_SECONDS = 120.0
"""Each replacement of a joining consumer doubles the time for the next one, because it starts a new rebalance."""
_QUIET_SECONDS = 15.0
"""Most joins end within this time, so nothing is checked before."""


class OutageWatch:
    """Checks Kafka after the consumer has reported an outage, and while the consumer waits too long for an assignment.

    The second check is needed because a consumer may lose Kafka without an error: in two hours of broker restarts, one did
    not rejoin its group for eight minutes.
    """

    def __init__(self, kafka: KafkaConfig, ended: Callable[[], None]) -> None:
        """`ended` is called when Kafka responds to the consumer again after all brokers were down."""
        self._reaches = partial(new_client_reaches, kafka)
        self._lost = LostClient(self._reaches)
        self._ended = ended
        self._was_down = False
        self._check_at: float | None = None
        """Time of the next check; None if there was no outage since the last response."""
        self._check_lost_at = self._check_join_at = 0.0
        self._joining_since: float | None = None
        self._responds_since: float | None = None
        """Time since which Kafka responds to new clients while this consumer joins; None if it does not, or before a check."""
        self._join_seconds = _JOIN_SECONDS

    def failed(self, error: KafkaError) -> None:
        """Record that the consumer has reported `error`."""
        if error.code() in OUTAGES and self._check_at is None:
            now = time.monotonic()
            self._check_at, self._check_lost_at = now + _ASK_EVERY_SECONDS, now + _LOST_EVERY_SECONDS
        self._was_down |= error.code() == KafkaError._ALL_BROKERS_DOWN

    def joining(self) -> None:
        """Record that the consumer waits for an assignment."""
        if self._joining_since is None:
            self._joining_since = time.monotonic()
            self._check_join_at = self._joining_since + _QUIET_SECONDS
            self._responds_since = None

    def joined(self) -> None:
        """Record that the consumer got an assignment, even an empty one."""
        self._joining_since = None
        self._join_seconds = _JOIN_SECONDS

    def replacement_reason(self, consumer: Consumer, topic: str) -> str | None:
        """Return why `consumer` must be replaced now, or None. Sometimes blocks, for three seconds at most."""
        now = time.monotonic()
        reason = None
        if self._check_at is not None and now >= self._check_at and self._is_lost(consumer, topic, now):
            reason = "it cannot reach Kafka, but a new client can"
        elif self._joining_since is not None and now >= self._check_join_at and self._is_join_overdue(now):
            reason = f"no assignment for {now - self._joining_since:.0f} s, although Kafka responds"
            self._join_seconds = min(2 * self._join_seconds, _LONGEST_JOIN_SECONDS)
        if reason is not None:
            self.replaced()
        return reason

    def replaced(self) -> None:
        """Reset the state for a new consumer, which has reported no error and is not joining yet."""
        self._check_at = self._joining_since = None

    def _is_join_overdue(self, now: float) -> bool:
        """Return whether the join takes too long. An outage restarts its time, since a consumer cannot join during an outage."""
        self._check_join_at = now + _LOST_EVERY_SECONDS
        if not self._reaches():
            self._responds_since = None
            return False
        if self._responds_since is None:
            self._responds_since = now
        return now - self._responds_since >= self._join_seconds

    def _is_lost(self, consumer: Consumer, topic: str, now: float) -> bool:
        try:
            consumer.list_topics(topic, timeout=_ASK_SECONDS)
        except KafkaException:
            self._check_at = now + _ASK_EVERY_SECONDS
            if now < self._check_lost_at:
                return False
            self._check_lost_at = now + _LOST_EVERY_SECONDS
            return self._lost.observe(False, now)
        self._check_at = None
        self._lost.observe(True, now)
        if self._was_down:
            self._was_down = False
            self._ended()
        return False
