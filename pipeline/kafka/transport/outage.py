"""Finds consumers that do not come back after an outage of Kafka, or never get an assignment. Belongs to the poll thread."""

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
"""Interval at which a consumer that has reported an outage asks whether it is over."""
_LOST_EVERY_SECONDS = 5.0
"""Interval between questions of new clients, which see whether Kafka answers others."""
_JOIN_SECONDS = 30.0
"""A group waits 20 s for a member that is gone (max.poll.interval.ms), and a coordinator takes some seconds to load."""
_LONGEST_JOIN_SECONDS = 120.0
"""Each consumer that was replaced while it joined doubles the time that the next one gets: replacing starts a new rebalance."""
_QUIET_SECONDS = 15.0
"""Most joins are over by then, and nobody is asked."""


class OutageWatch:
    """Asks Kafka after the consumer has reported an outage, until it has answered, and while it waits too long for an assignment.

    A consumer may lose Kafka without reporting anything: in two hours of broker restarts one did not join again for eight minutes.
    """

    def __init__(self, kafka: KafkaConfig, ended: Callable[[], None]) -> None:
        """`ended` is called when Kafka answers the consumer again after all of its brokers were down."""
        self._reaches = partial(new_client_reaches, kafka)
        self._lost = LostClient(self._reaches)
        self._ended = ended
        self._was_down = False
        self._ask_at: float | None = None
        """None: there was no outage since the last answer."""
        self._lost_at = self._unjoined_at = 0.0
        self._joining_since: float | None = None
        self._answers_since: float | None = None
        """Since when Kafka has answered new clients while this one joins; None: it did not, or was not asked."""
        self._join_seconds = _JOIN_SECONDS

    def failed(self, error: KafkaError) -> None:
        """The consumer has reported `error`."""
        if error.code() in OUTAGES and self._ask_at is None:
            now = time.monotonic()
            self._ask_at, self._lost_at = now + _ASK_EVERY_SECONDS, now + _LOST_EVERY_SECONDS
        self._was_down |= error.code() == KafkaError._ALL_BROKERS_DOWN

    def joining(self) -> None:
        """The consumer waits for an assignment."""
        if self._joining_since is None:
            self._joining_since = time.monotonic()
            self._unjoined_at = self._joining_since + _QUIET_SECONDS
            self._answers_since = None

    def joined(self) -> None:
        """An assignment has come, be it an empty one."""
        self._joining_since = None
        self._join_seconds = _JOIN_SECONDS

    def why_lost(self, consumer: Consumer, topic: str) -> str | None:
        """Why `consumer` must be replaced now; None: it need not be. Blocks for three seconds at most, once in a while."""
        now = time.monotonic()
        reason = None
        if self._ask_at is not None and now >= self._ask_at and self._is_lost(consumer, topic, now):
            reason = "it has lost Kafka, which others reach"
        elif self._joining_since is not None and now >= self._unjoined_at and self._is_unjoined(now):
            reason = f"no assignment has come for {now - self._joining_since:.0f} s, although Kafka answers"
            self._join_seconds = min(2 * self._join_seconds, _LONGEST_JOIN_SECONDS)
        if reason is not None:
            self.replaced()
        return reason

    def replaced(self) -> None:
        """Another consumer begins: it has not reported anything, and does not join yet."""
        self._ask_at = self._joining_since = None

    def _is_unjoined(self, now: float) -> bool:
        """An outage gives the consumer its time anew: only while Kafka answers, it can join."""
        self._unjoined_at = now + _LOST_EVERY_SECONDS
        if not self._reaches():
            self._answers_since = None
            return False
        if self._answers_since is None:
            self._answers_since = now
        return now - self._answers_since >= self._join_seconds

    def _is_lost(self, consumer: Consumer, topic: str, now: float) -> bool:
        try:
            consumer.list_topics(topic, timeout=_ASK_SECONDS)
        except KafkaException:
            self._ask_at = now + _ASK_EVERY_SECONDS
            if now < self._lost_at:
                return False
            self._lost_at = now + _LOST_EVERY_SECONDS
            return self._lost.observe(False, now)
        self._ask_at = None
        self._lost.observe(True, now)
        if self._was_down:
            self._was_down = False
            self._ended()
        return False
