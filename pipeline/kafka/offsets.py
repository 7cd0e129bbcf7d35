"""Reads the start and end offsets of the partitions of a topic, and offsets by time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.config.models import KafkaConfig
from pipeline.kafka.client import client_properties, unavailable
from pipeline.kafka.patience import in_slices

PATIENCE_SECONDS = 10.0
"""How long a command waits for a Kafka that may not be running."""


@dataclass(frozen=True, slots=True)
class Span:
    """The offsets `low` <= offset < `end` of one partition. Some may be commit markers or aborted records."""

    low: int
    end: int

    @property
    def is_empty(self) -> bool:
        """True if the span holds no offsets: nothing was written, or retention has deleted everything."""
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

    With `committed`, a span ends at the last stable offset (before the first open transaction), else at the high watermark.
    Raises BrokerUnavailable if Kafka does not respond within `patience_seconds`.
    """
    admin = AdminClient(client_properties(kafka))
    try:
        return in_slices(lambda timeout: _ask(admin, topic, committed, partitions, timeout), patience_seconds)
    except KafkaException as error:
        raise unavailable(kafka, f"the offsets of topic {topic}", error) from error
    finally:
        admin.poll(0)  # runs the log callback


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
    # Low watermarks first: they only rise, so low <= end holds for each span.
    lows, ends = (
        list_offsets(admin, asked, spec, level, timeout_seconds)
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
    )
    return {number: Span(low, max(low, ends[topic, number])) for (_, number), low in lows.items()}


def list_offsets(
    admin: AdminClient,
    asked: Collection[TopicPartition],
    spec: OffsetSpec,
    level: IsolationLevel,
    timeout_seconds: float,
) -> dict[tuple[str, int], int]:
    """Return the offset that `spec` selects in each partition of `asked`. Sends one request; raises KafkaException."""
    futures = admin.list_offsets(dict.fromkeys(asked, spec), isolation_level=level, request_timeout=timeout_seconds)
    found = {(tp.topic, tp.partition): future.result(timeout_seconds + 1).offset for tp, future in futures.items()}
    if any(offset < 0 for offset in found.values()):
        # After a lost request librdkafka 2.16 returns OFFSET_INVALID without an error; the partition would count as empty.
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the response has no offset for a partition"))
    return found


def end_offsets(
    kafka: KafkaConfig, topic: str, committed: bool, patience_seconds: float = PATIENCE_SECONDS
) -> dict[int, int]:
    """Return the end offset of each partition; see `spans`."""
    found = spans(kafka, topic, committed=committed, patience_seconds=patience_seconds)
    return {number: span.end for number, span in found.items()}


def first_offsets_since(
    kafka: KafkaConfig, topic: str, since_ms: int, patience_seconds: float = PATIENCE_SECONDS
) -> dict[int, int]:
    """Return the offset of the first record at or after `since_ms` in each partition; the end offset if there is none.

    `since_ms` is in Unix milliseconds. Raises BrokerUnavailable if Kafka does not respond within `patience_seconds`.
    """
    ends = end_offsets(kafka, topic, committed=True, patience_seconds=patience_seconds)
    asked = [TopicPartition(topic, number, since_ms) for number in ends]
    consumer = Consumer(client_properties(kafka, group__id="hitrouter-read"))  # required by librdkafka; never joined
    try:
        found = in_slices(
            lambda timeout: without_errors(consumer.offsets_for_times(asked, timeout=timeout)), patience_seconds
        )
    except KafkaException as error:
        raise unavailable(kafka, f"the offsets of topic {topic} by time", error) from error
    finally:
        consumer.close()
    return {tp.partition: tp.offset if tp.offset >= 0 else ends[tp.partition] for tp in found}


def without_errors(partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Return `partitions`. Raises KafkaException if one has an error, such as after a leader change.

    Without this check, its missing offset would mean that there is no such record.
    """
    for partition in partitions:
        if partition.error is not None:
            raise KafkaException(partition.error)
    return partitions
