"""The ledger: what became of every hit, by the sums of its entries and by what the topics hold (contract.md, section 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from pipeline.codec.ledger_entry import decode_ledger_entry
from pipeline.config.models import Config
from pipeline.kafka.bounded_read import read_ranges
from pipeline.kafka.first_records import FirstRecord, first_records
from pipeline.kafka.offsets import Span, spans
from pipeline.kafka.topics import TopicNames, topic_retention_ms
from pipeline.kafka.watermarks import ClusterReader, Place, Watermarks
from pipeline.operations.ledger_pauses import Pause
from pipeline.operations.ledger_sums import (
    Backlog,
    ConnectionSums,
    HitSums,
    Ledger,
    sum_ledger,
)
from pipeline.operations.set_aside import add_set_aside, set_aside_group
from pipeline.operations.settlement import Unread, settle, uncounted, unread
from pipeline.registry import declared_destinations

__all__ = ["Backlog", "ConnectionSums", "HitSums", "Ledger", "Pause", "read_ledger", "sum_ledger"]

_COUNT_LIMIT = 100_000
"""Up to so many offsets are read to count the records that wait; beyond it the ledger shows bounds."""


def read_ledger(config: Config) -> Ledger:
    """The ledger as the topics have it now. Raises BrokerUnavailable.

    Its parts are read one after the other while workers go on. What does not add up is looked at again, once every
    transaction that was open has ended.
    """
    ledger, is_quiet = _look(config, settled=False)
    if not ledger.adds_up and not is_quiet:
        ledger, _ = _look(config, settled=True)
    return ledger


@dataclass(frozen=True, slots=True)
class _Queue:
    """A topic and the group that reads it; `connection` is "" for hits-raw."""

    connection: str
    topic: str
    group: str


@dataclass(frozen=True, slots=True)
class _Found:
    """What a queue holds unread, and the first record of each of its ranges that is not empty."""

    queue: _Queue
    unread: Unread
    first: Mapping[Place, FirstRecord]
    marks: Mapping[Place, Watermarks]

    @property
    def offsets(self) -> int:
        """An upper bound of the records that wait; 0 where none does."""
        return sum(self.unread.ranges[place].end - first.offset for place, first in self.first.items())

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest record that waits was written."""
        return min((first.written_ms for first in self.first.values() if first.written_ms is not None), default=None)

    @property
    def is_stable(self) -> bool:
        """Does no open transaction write to the topic?"""
        return all(mark.stable_end == mark.end for mark in self.marks.values())

    def to_count(self) -> dict[int, Span]:
        """By partition where its committed records are."""
        return {place[1]: Span(first.offset, self.marks[place].stable_end) for place, first in self.first.items()}


def _look(config: Config, settled: bool) -> tuple[Ledger, bool]:
    """The ledger, and whether nothing was written to it meanwhile.

    The order makes false alarms impossible: offsets that groups have committed, then the entries, then the ends of the
    topics. So what has been counted is on its topic below the end, and what has been committed is counted.
    """
    names, kinds = TopicNames(config.kafka.topic_prefix), declared_destinations()
    topic_only = [n for n, c in config.connections.items() if kinds[c.destination].sink is None]
    cluster = ClusterReader(config.kafka)
    queues = [_Queue("", names.hits_raw, f"{names.prefix}route")]
    queues += [_queue(names, name) for name in config.connections if name not in topic_only]
    committed = cluster.committed(
        {queue.group: queue.topic for queue in queues} | {set_aside_group(names): names.set_aside}
    )
    ranges = spans(config.kafka, names.ledger, committed=not settled)
    records = read_ranges(config.kafka, names.ledger, ranges)
    is_complete = not any(span.low for span in ranges.values())
    ledger = sum_ledger((decode_ledger_entry(record.value() or b"") for record in records), topic_only, is_complete)
    for name in config.connections:
        ledger.connections.setdefault(name, ConnectionSums(topic_only=name in topic_only))
    ledger.pauses = {name: pause for name, pause in ledger.pauses.items() if name in config.connections}
    ledger.gone = [name for name in ledger.connections if name not in config.connections]
    if ledger.gone:
        gone = [_queue(names, name) for name in ledger.gone]
        committed |= cluster.committed({queue.group: queue.topic for queue in gone})
        # Without a trace of a worker it may have been one that is delivered as soon as it is routed.
        queues += [queue for queue in gone if committed[queue.group] or queue.connection in ledger.counted]
    marks = cluster.watermarks([names.ledger, names.set_aside, *(queue.topic for queue in queues)])
    is_quiet = all(marks[names.ledger, number].end == span.end for number, span in ranges.items())
    add_set_aside(config, ledger, committed[set_aside_group(names)], marks)
    _compare(config, ledger, queues, committed, marks, is_quiet, cluster)
    ledger.gone = [name for name in ledger.gone if ledger.connections[name].outstanding]
    return ledger, is_quiet


def _queue(names: TopicNames, connection: str) -> _Queue:
    return _Queue(connection, names.deliveries(connection), f"{names.prefix}deliver-{connection}")


def _compare(
    config: Config,
    ledger: Ledger,
    queues: Collection[_Queue],
    committed: Mapping[str, Mapping[Place, int]],
    marks: Mapping[Place, Watermarks],
    is_quiet: bool,
    cluster: ClusterReader,
) -> None:
    """Explain what has no outcome by what the topics hold."""
    found = _find(config, ledger, queues, committed, marks)
    waiting = [one for one in found if one.offsets]
    counted = _count(config, [one for one in waiting if _needs_count(ledger, one)])
    retention_ms = topic_retention_ms(config.kafka, [one.queue.topic for one in waiting]) if waiting else {}
    idle = cluster.without_members([one.queue.group for one in found if one.offsets or one.unread.taken])
    for one in found:
        name, records = one.queue.connection, counted.get(one.queue.topic)
        ledger.problems += one.unread.problems
        ledger.backlogs[name] = Backlog(
            one.offsets,
            0 if not one.offsets else records,
            one.unread.taken,
            one.oldest_ms,
            retention_ms.get(one.queue.topic),
            one.queue.group not in idle,
        )
        if not name:
            ledger.hits.expired_at_most += one.unread.taken
            continue
        sums = ledger.connections[name]
        is_exact = not one.offsets or (records is not None and one.is_stable and is_quiet)
        outstanding, still_there = sums.outstanding, one.offsets if records is None else records
        if ledger.is_complete:
            outstanding -= max(0, sums.set_aside)
        else:  # the entries of those that were set aside may be gone: the topic says how many there are
            sums.set_aside = ledger.set_aside[name].count if name in ledger.set_aside else 0
            still_there += sums.set_aside
        settlement = settle(outstanding, sums.gap_offsets + one.unread.taken, still_there, is_exact, ledger.is_complete)
        sums.expired, sums.expired_at_most, sums.earlier, sums.missing = settlement
        if sums.missing and name in config.connections:
            ledger.problems.append(
                f"{name}: {sums.missing} hits are missing: they were routed, and neither have an outcome nor are on "
                f"topic {one.queue.topic}"
            )


def _find(
    config: Config,
    ledger: Ledger,
    queues: Collection[_Queue],
    committed: Mapping[str, Mapping[Place, int]],
    marks: Mapping[Place, Watermarks],
) -> list[_Found]:
    parts: list[_Found] = []
    passed: dict[Place, Span] = {}
    for queue in queues:
        own = {place: mark for place, mark in marks.items() if place[0] == queue.topic}
        counted = ledger.counted.get(queue.connection, {})
        read = committed[queue.group]
        parts.append(_Found(queue, unread(own, read, counted, queue.group), {}, own))
        if not queue.connection:  # what a connection has passed is missing in its sums
            passed = uncounted(own, read, counted, ledger.is_complete)
    for place, record in first_records(config.kafka, passed).items():
        if record.written_ms is not None:
            ledger.problems.append(
                f"{place[0]}-{place[1]}: hits at {record.offset} to {passed[place].end - 1} were passed and are not in the "
                "ledger; were the offsets of the routers' group set by hand?"
            )
    first = first_records(config.kafka, {place: span for part in parts for place, span in part.unread.ranges.items()})
    return [replace(part, first={place: first[place] for place in part.marks if place in first}) for part in parts]


def _needs_count(ledger: Ledger, found: _Found) -> bool:
    if found.offsets > _COUNT_LIMIT:
        return False
    if not found.queue.connection:
        return found.oldest_ms is not None
    taken = ledger.connections[found.queue.connection].gap_offsets + found.unread.taken
    return taken > 0 or not ledger.is_complete


def _count(config: Config, wanted: Collection[_Found]) -> Mapping[str, int]:
    """By topic how many records wait. Those of open transactions are not among them."""
    return Counter(
        {one.queue.topic: sum(1 for _ in read_ranges(config.kafka, one.queue.topic, one.to_count())) for one in wanted}
    )
