"""Whether a consumer has come back from an outage, or has lost a Kafka that others reach. Belongs to the poll thread."""

from __future__ import annotations

import time
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException

from pipeline.config.models import KafkaConfig
from pipeline.kafka.patience import OUTAGES
from pipeline.kafka.stuck import LostClient, new_client_reaches

_ASK_SECONDS = 0.5
_PAUSE_SECONDS = 5.0


class OutageWatch:
    """Asks Kafka only after the consumer has reported an outage, and until it has answered."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._lost = LostClient(partial(new_client_reaches, kafka))
        self._ask_at: float | None = None
        """None: there was no outage since the last answer."""

    def failed(self, error: KafkaError) -> None:
        """The consumer has reported `error`."""
        if error.code() in OUTAGES and self._ask_at is None:
            self._ask_at = time.monotonic() + _PAUSE_SECONDS

    def is_lost(self, consumer: Consumer, topic: str) -> bool:
        """Whether `consumer` must be replaced now. Blocks for two seconds at most, once in a while."""
        now = time.monotonic()
        if self._ask_at is None or now < self._ask_at:
            return False
        try:
            consumer.list_topics(topic, timeout=_ASK_SECONDS)
        except KafkaException:
            self._ask_at = now + _PAUSE_SECONDS
            return self._lost.observe(False, now)
        self._ask_at = None
        return self._lost.observe(True, now)
