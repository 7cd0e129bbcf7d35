"""Accounts for every hit: sums the ledger's entries and compares them with the topics (contract.md, section 2)."""

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
from pipeline.operations.settlement import UnreadRanges, settle, uncounted_ranges, unread_ranges
from pipeline.registry import declared_destinations

__all__ = ["Backlog", "ConnectionSums", "HitSums", "Ledger", "Pause", "read_ledger", "sum_ledger"]

_COUNT_LIMIT = 100_000
"""Waiting records are counted one by one up to this number of offsets; beyond it the ledger shows bounds."""


def read_ledger(config: Config) -> Ledger:
    """Return the ledger as of now. Raises BrokerUnavailable.

    Its parts are read one after the other while workers run. If the result does not add up, it is read again once all
    transactions that were open have ended.
    """
    ledger, is_quiet = _read_once(config, settled=False)
    if not ledger.adds_up and not is_quiet:
        ledger, _ = _read_once(config, settled=True)
    return ledger


@dataclass(frozen=True, slots=True)
class _Queue:
    """A topic and the group that reads it; `connection` is "" for hits-raw."""

    connection: str
    topic: str
    group: str


@dataclass(frozen=True, slots=True)
class _QueueState:
    """The unread ranges of a queue, and the first record of each range that is not empty."""

    queue: _Queue
    unread: UnreadRanges
    first: Mapping[Place, FirstRecord]
    watermarks: Mapping[Place, Watermarks]

    @property
    def offsets(self) -> int:
        """Upper bound of the waiting records; 0 if none waits."""
        return sum(self.unread.ranges[place].end - first.offset for place, first in self.first.items())

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest waiting record was written, in milliseconds since 1970."""
        return min((first.written_ms for first in self.first.values() if first.written_ms is not None), default=None)

    @property
    def is_stable(self) -> bool:
        """Whether no open transaction has written to the topic."""
        return all(mark.stable_end == mark.end for mark in self.watermarks.values())

    def countable_ranges(self) -> dict[int, Span]:
        """Return by partition the range of its committed waiting records."""
        return {place[1]: Span(first.offset, self.watermarks[place].stable_end) for place, first in self.first.items()}


def _read_once(config: Config, settled: bool) -> tuple[Ledger, bool]:
    """Return the ledger, and whether nothing was written to its topic during the read.

    The order of reads rules out false alarms: committed offsets first, then the entries, then the ends of the topics. So
    every counted hit is below the end of its topic, and every committed offset is counted.
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
    ledger.removed = [name for name in ledger.connections if name not in config.connections]
    if ledger.removed:
        removed_queues = [_queue(names, name) for name in ledger.removed]
        committed |= cluster.committed({queue.group: queue.topic for queue in removed_queues})
        # Without committed offsets and entries it may have been a connection without a sink, which no worker reads.
        queues += [queue for queue in removed_queues if committed[queue.group] or queue.connection in ledger.counted_to]
    marks = cluster.watermarks([names.ledger, names.set_aside, *(queue.topic for queue in queues)])
    is_quiet = all(marks[names.ledger, number].end == span.end for number, span in ranges.items())
    add_set_aside(config, ledger, committed[set_aside_group(names)], marks)
    _compare_with_topics(config, ledger, queues, committed, marks, is_quiet, cluster)
    ledger.removed = [name for name in ledger.removed if ledger.connections[name].outstanding]
    return ledger, is_quiet


def _queue(names: TopicNames, connection: str) -> _Queue:
    return _Queue(connection, names.deliveries(connection), f"{names.prefix}deliver-{connection}")


def _compare_with_topics(
    config: Config,
    ledger: Ledger,
    queues: Collection[_Queue],
    committed: Mapping[str, Mapping[Place, int]],
    marks: Mapping[Place, Watermarks],
    is_quiet: bool,
    cluster: ClusterReader,
) -> None:
    """Find out from the topics why hits have no outcome. Add backlogs, expired hits and problems to `ledger`."""
    found = _read_queue_states(config, ledger, queues, committed, marks)
    waiting = [one for one in found if one.offsets]
    counted = _count_records(config, [one for one in waiting if _needs_count(ledger, one)])
    retention_ms = topic_retention_ms(config.kafka, [one.queue.topic for one in waiting]) if waiting else {}
    idle = cluster.without_members([one.queue.group for one in found if one.offsets or one.unread.deleted])
    for one in found:
        name, records = one.queue.connection, counted.get(one.queue.topic)
        ledger.problems += one.unread.problems
        ledger.backlogs[name] = Backlog(
            one.offsets,
            0 if not one.offsets else records,
            one.unread.deleted,
            one.oldest_ms,
            retention_ms.get(one.queue.topic),
            one.queue.group not in idle,
        )
        if not name:
            ledger.hits.expired_at_most += one.unread.deleted
            continue
        sums = ledger.connections[name]
        is_exact = not one.offsets or (records is not None and one.is_stable and is_quiet)
        outstanding, still_there = sums.outstanding, one.offsets if records is None else records
        if ledger.is_complete:
            outstanding -= max(0, sums.set_aside)
        else:  # entries of hits that were set aside may be deleted, so their number comes from the topic
            sums.set_aside = ledger.set_aside[name].count if name in ledger.set_aside else 0
            still_there += sums.set_aside
        settlement = settle(
            outstanding, sums.gap_offsets + one.unread.deleted, still_there, is_exact, ledger.is_complete
        )
        sums.expired, sums.expired_at_most, sums.earlier, sums.missing = settlement
        if sums.missing and name in config.connections:
            ledger.problems.append(
                f"{name}: {sums.missing} hits are missing: they were routed, but have no outcome and are not on "
                f"topic {one.queue.topic}"
            )


def _read_queue_states(
    config: Config,
    ledger: Ledger,
    queues: Collection[_Queue],
    committed: Mapping[str, Mapping[Place, int]],
    marks: Mapping[Place, Watermarks],
) -> list[_QueueState]:
    parts: list[_QueueState] = []
    passed: dict[Place, Span] = {}
    for queue in queues:
        own = {place: mark for place, mark in marks.items() if place[0] == queue.topic}
        counted = ledger.counted_to.get(queue.connection, {})
        read = committed[queue.group]
        parts.append(_QueueState(queue, unread_ranges(own, read, counted, queue.group), {}, own))
        if not queue.connection:  # for a connection, hits that were passed show up as missing
            passed = uncounted_ranges(own, read, counted, ledger.is_complete)
    for place, record in first_records(config.kafka, passed).items():
        if record.written_ms is not None:
            ledger.problems.append(
                f"{place[0]}-{place[1]}: offsets {record.offset} to {passed[place].end - 1} were skipped, and their hits are "
                "not in the ledger; check whether the offsets of the routers' group were set by hand"
            )
    first = first_records(config.kafka, {place: span for part in parts for place, span in part.unread.ranges.items()})
    return [replace(part, first={place: first[place] for place in part.watermarks if place in first}) for part in parts]


def _needs_count(ledger: Ledger, found: _QueueState) -> bool:
    if found.offsets > _COUNT_LIMIT:
        return False
    if not found.queue.connection:
        return found.oldest_ms is not None
    deleted = ledger.connections[found.queue.connection].gap_offsets + found.unread.deleted
    return deleted > 0 or not ledger.is_complete


def _count_records(config: Config, wanted: Collection[_QueueState]) -> Mapping[str, int]:
    """Return by topic how many records wait, without those of open transactions."""
    return Counter(
        {
            one.queue.topic: sum(1 for _ in read_ranges(config.kafka, one.queue.topic, one.countable_ranges()))
            for one in wanted
        }
    )
