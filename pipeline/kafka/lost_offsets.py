"""Recovers the next offsets of a group from the ledger after its committed offsets have expired.

Kafka deletes the offsets of a group that has had no member for `offsets.retention.minutes` (7 days by default). A worker
that starts after such a stop would read its topics from the beginning, and route or deliver every record that retention
still keeps a second time. The ledger holds the same offsets, because each transaction writes them there, too.
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
"""In practice offsets expire after an hour at the earliest, so a younger topic belongs to a new connection."""


def progress_in(entries: Iterable[LedgerEntry], role: str, topic: str) -> dict[int, int]:
    """Return the next offset of `role` in each partition of `topic`, according to the ledger entries."""
    found: dict[int, int] = {}
    for entry in entries:
        if entry.role == role and entry.topic == topic:
            found[entry.partition] = max(found.get(entry.partition, 0), entry.next_offset)
    return found


def recover_from_ledger(
    kafka: KafkaConfig, ledger_topic: str, role: str, aged_seconds: float = _AGED_SECONDS
) -> Recover:
    """Return a function that finds the next offsets of `role` in the ledger; unknown partitions start at 0.

    The function reads the whole ledger, but only for topics that are old enough: retention has deleted records, or the
    oldest record is at least `aged_seconds` old. The young topic of a new connection does not need it.
    """

    def recover(partitions: Sequence[TP]) -> dict[TP, int]:
        found: dict[TP, int] = {}
        for topic in {tp.topic for tp in partitions}:
            numbers = [tp.partition for tp in partitions if tp.topic == topic]
            held = spans(kafka, topic, committed=False, partitions=numbers)
            if _has_aged(kafka, topic, held, aged_seconds):
                progress = progress_in(_entries(kafka, ledger_topic), role, topic)
                # An offset beyond the end means that the topic was recreated, so its offsets restarted at 0.
                known = {TP(topic, n): progress[n] for n, span in held.items() if 0 < progress.get(n, 0) <= span.end}
                logger.warning(
                    "committed offsets expired, recovered from the ledger: topic=%s partitions=%s next_offsets=%s",
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
