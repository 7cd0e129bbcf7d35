"""Writes dead letters, shortened if their record is too large."""

from __future__ import annotations

from pipeline.codec.raw_record import Headers
from pipeline.errors import RecordTooLarge
from pipeline.kafka.transport.batch import Outputs

VALUE_BYTES = "value-bytes"
"""Header of a shortened dead letter: the size of the original value in bytes."""
_KEPT_BYTES = 262_144
_KEPT_KEY_BYTES = 1_024


def produce_dead_letter(outputs: Outputs, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
    """Queue a dead letter. If it is too large for the producer, key and value are cut.

    The record may already have the largest size that Kafka accepts, and the headers of the dead letter add to that. The
    headers name the topic, partition and offset of the whole record, which can be read there until retention deletes it.
    """
    try:
        outputs.produce(topic, value, key, headers=headers)
    except RecordTooLarge:
        cut = [*headers, (VALUE_BYTES, str(len(value or b"")))]
        outputs.produce(topic, (value or b"")[:_KEPT_BYTES], (key or b"")[:_KEPT_KEY_BYTES], headers=cut)
