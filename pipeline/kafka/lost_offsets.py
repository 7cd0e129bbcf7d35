"""Where a group reads on after Kafka has dropped its committed offsets.

Kafka drops the offsets of a group that has had no member for `offsets.retention.minutes` (7 days unless the operator sets
more). A worker that comes back after such a stop would read its topics from the beginning, and route or deliver every
record again that retention still holds. The ledger holds the same offsets: each transaction writes how far it has read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence

from faust.types import TP

from pipeline.codec.ledger_entry import LedgerEntry, decode_ledger_entry
from pipeline.config.models import KafkaConfig
from pipeline.kafka.bounded_read import read_span
from pipeline.kafka.first_records import first_records
from pipeline.kafka.group_offsets import Recover
from pipeline.kafka.offsets import Span, spans

logger = logging.getLogger(__name__)

_AGED_SECONDS = 3600.0
"""Offsets expire after an hour at the soonest in practice; a younger topic belongs to a new connection."""


def progress_in(entries: Iterable[LedgerEntry], role: str, topic: str) -> dict[int, int]:
    """Return by partition the offset that `role` reads next from `topic`, as the entries have it."""
    found: dict[int, int] = {}
    for entry in entries:
        if entry.role == role and entry.topic == topic:
            found[entry.partition] = max(found.get(entry.partition, 0), entry.next_offset)
    return found


def recover_from_ledger(
    kafka: KafkaConfig, ledger_topic: str, role: str, aged_seconds: float = _AGED_SECONDS
) -> Recover:
    """Return what finds, in the ledger, where `role` reads on; a partition that the ledger does not know starts at 0.

    It reads the ledger whole, but only where a topic has aged: retention has taken records, or the oldest one is
    `aged_seconds` old. A new connection, whose topic is young, does not pay for it.
    """

    def recover(partitions: Sequence[TP]) -> dict[TP, int]:
        found: dict[TP, int] = {}
        for topic in {tp.topic for tp in partitions}:
            numbers = [tp.partition for tp in partitions if tp.topic == topic]
            held = spans(kafka, topic, committed=False, partitions=numbers)
            if _has_aged(kafka, topic, held, aged_seconds):
                progress = progress_in(_entries(kafka, ledger_topic), role, topic)
                # Beyond the end the topic was made anew since; its offsets count from 0 again.
                known = {TP(topic, n): progress[n] for n, span in held.items() if 0 < progress.get(n, 0) <= span.end}
                logger.warning(
                    "committed offsets have expired, read from the ledger: topic=%s partitions=%s next_offsets=%s",
                    *(topic, sorted(numbers), {tp.partition: offset for tp, offset in sorted(known.items())}),
                )
                found |= known
        return found

    return recover


def _entries(kafka: KafkaConfig, ledger_topic: str) -> Iterator[LedgerEntry]:
    for record in read_span(kafka, ledger_topic):
        yield decode_ledger_entry(record.value() or b"")


def _has_aged(kafka: KafkaConfig, topic: str, found: dict[int, Span], aged_seconds: float) -> bool:
    if any(span.low > 0 for span in found.values()):
        return True
    oldest = first_records(kafka, {(topic, number): span for number, span in found.items()})
    times = [first.written_ms for first in oldest.values() if first.written_ms is not None]
    return bool(times) and time.time() - min(times) / 1000 >= aged_seconds
