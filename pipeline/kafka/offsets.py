"""Where the partitions of a topic begin and end now."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties, unavailable

PATIENCE_SECONDS = 10.0
"""How long a command at a terminal waits for a Kafka that may not be running."""
_REQUEST_SECONDS = 3.0
"""Time-out of one request. A request that a restarting broker lost is sent again after it."""
_PAUSE_SECONDS = 0.1
# A topic that was just made, or whose leader just changed, answers with these for a moment.
_PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._ALL_BROKERS_DOWN,
}


@dataclass(frozen=True, slots=True)
class Span:
    """The offsets `low` <= offset < `end` of one partition. Some of them may hold commit markers or aborted records."""

    low: int
    end: int

    @property
    def is_empty(self) -> bool:
        """True when the partition holds nothing: it never did, or retention has taken all of it."""
        return self.low >= self.end


def spans(
    kafka: KafkaConfig,
    topic: str,
    *,
    committed: bool,
    partitions: Collection[int] | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> dict[int, Span]:
    """Return the span of each partition, or of those in `partitions`.

    With `committed` a span ends before the first open transaction (the last stable offset), else at the high watermark.
    Raises BrokerUnavailable when there is no answer within `patience_seconds`.
    """
    admin = AdminClient(client_properties(kafka))
    deadline = time.monotonic() + patience_seconds
    while True:
        slice_seconds = min(_REQUEST_SECONDS, patience_seconds)
        try:
            return _ask(admin, topic, committed, partitions, slice_seconds)
        except KafkaException as error:
            admin.poll(0)  # serves the log callback
            if error.args[0].code() not in _PASSING or time.monotonic() > deadline:
                raise unavailable(kafka, f"the offsets of topic {topic}", error) from error
            time.sleep(_PAUSE_SECONDS)


def _ask(
    admin: AdminClient, topic: str, committed: bool, partitions: Collection[int] | None, timeout_seconds: float
) -> dict[int, Span]:
    found = admin.list_topics(topic, timeout=timeout_seconds).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    asked = [TopicPartition(topic, number) for number in (found.partitions if partitions is None else partitions)]
    if not asked:
        return {}
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    # The low watermarks are asked first: they only rise, so low <= end holds for each span.
    lows, ends = (
        {
            tp.partition: future.result().offset
            for tp, future in admin.list_offsets(
                dict.fromkeys(asked, at), isolation_level=level, request_timeout=timeout_seconds
            ).items()
        }
        for at in (OffsetSpec.earliest(), OffsetSpec.latest())
    )
    return {number: Span(lows[number], max(lows[number], ends[number])) for number in lows}


def end_offsets(
    kafka: KafkaConfig, topic: str, committed: bool, patience_seconds: float = PATIENCE_SECONDS
) -> dict[int, int]:
    """Return by partition the offset behind the last record; see `spans`."""
    found = spans(kafka, topic, committed=committed, patience_seconds=patience_seconds)
    return {number: span.end for number, span in found.items()}
