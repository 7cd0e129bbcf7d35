"""Writing a dead letter whatever its record holds."""

from __future__ import annotations

from pipeline.codec.raw_record import Headers
from pipeline.errors import RecordTooLarge
from pipeline.kafka.transport.batch import Outputs

VALUE_BYTES = "value-bytes"
"""Header of a dead letter that holds only the beginning of its record: how many bytes the record's value has."""
_KEPT_BYTES = 262_144
_KEPT_KEY_BYTES = 1_024


def produce_dead_letter(outputs: Outputs, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
    """Queue a dead letter; where it is too large for the producer, with the beginning of key and value only.

    The headers of a dead letter come on top of its record, which may be as large as Kafka takes. The record itself is at
    the origin that the headers name, as long as that topic keeps it.
    """
    try:
        outputs.produce(topic, value, key, headers=headers)
    except RecordTooLarge:
        cut = [*headers, (VALUE_BYTES, str(len(value or b"")))]
        outputs.produce(topic, (value or b"")[:_KEPT_BYTES], (key or b"")[:_KEPT_KEY_BYTES], headers=cut)
