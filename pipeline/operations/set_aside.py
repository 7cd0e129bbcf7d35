"""Reads the hits that wait on the topic `set-aside`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from confluent_kafka import Message

from pipeline.codec.routed_hit import time_text
from pipeline.codec.set_aside import SetAsideHit, wait_seconds
from pipeline.config.models import Config
from pipeline.kafka.bounded_read import read_ranges
from pipeline.kafka.offsets import Span
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.topics.declared import SET_ASIDE_MEMBER
from pipeline.kafka.watermarks import Place, Watermarks
from pipeline.operations.ledger_sums import Ledger, SetAsideHits
from pipeline.operations.moments import duration_text
from pipeline.operations.settlement import unread_ranges

_READ_LIMIT = 100_000
"""Most offsets that are read to show the waiting hits; many times the number that can be set aside within the retention."""


class WaitingHit(NamedTuple):
    """A waiting record; its hit is retried at `next_ms`, in milliseconds since 1970."""

    hit: SetAsideHit
    record: Message
    next_ms: int


def set_aside_group(names: TopicNames) -> str:
    """Return the consumer group of the workers that retry these hits."""
    return f"{names.prefix}{SET_ASIDE_MEMBER}"


def waiting_hits(
    config: Config, committed: Mapping[Place, int], marks: Mapping[Place, Watermarks]
) -> Iterator[WaitingHit]:
    """Yield the hits above the `committed` offsets, which the workers have not read. Raises BrokerUnavailable."""
    topic = TopicNames(config.kafka.topic_prefix).set_aside
    ranges = {
        place[1]: Span(max(mark.low, committed.get(place, 0)), mark.stable_end)
        for place, mark in marks.items()
        if place[0] == topic
    }
    yield from _read(config, topic, ranges)


def add_set_aside(
    config: Config, ledger: Ledger, committed: Mapping[Place, int], marks: Mapping[Place, Watermarks]
) -> None:
    """Add the waiting hits to `ledger`. `committed` was read before the ledger's entries, `marks` after them."""
    names = TopicNames(config.kafka.topic_prefix)
    own = {place: mark for place, mark in marks.items() if place[0] == names.set_aside}
    found = unread_ranges(own, committed, ledger.set_aside_counted_to, set_aside_group(names))
    ledger.problems += found.problems
    ledger.set_aside_expired_at_most += found.deleted
    offsets = sum(span.end - span.low for span in found.ranges.values())
    counted = sum(max(0, sums.set_aside) for sums in ledger.connections.values())
    if ledger.is_complete and counted > offsets + ledger.set_aside_expired_at_most:
        ledger.problems.append(
            f"{counted - offsets - ledger.set_aside_expired_at_most} hits are missing: they were set aside, but have no "
            f"outcome and are not on topic {names.set_aside}"
        )
    if not 0 < offsets <= _READ_LIMIT:
        return
    ranges = {place[1]: Span(span.low, own[place].stable_end) for place, span in found.ranges.items()}
    seen: set[tuple[str, int, int]] = set()
    for one in _read(config, names.set_aside, ranges):
        origin = (one.hit.topic, one.hit.partition, one.hit.offset)
        if origin in seen:  # a worker wrote it again during the read
            continue
        seen.add(origin)
        before = ledger.set_aside.get(one.hit.connection)
        count, next_ms = (before.count + 1, min(before.next_ms, one.next_ms)) if before else (1, one.next_ms)
        ledger.set_aside[one.hit.connection] = SetAsideHits(count, one.hit.message, next_ms)


def set_aside_text(one: WaitingHit) -> str:
    """Return why a hit was set aside, how often it was tried, and when it is retried."""
    left_seconds = one.next_ms / 1000 - time.time()
    again = f"in {duration_text(left_seconds)}" if left_seconds > 0 else "now"
    tried = "once" if one.hit.asked == 1 else f"{one.hit.asked} times"
    return f"set aside since {time_text(one.hit.since_ms)}: {one.hit.message}; tried {tried}, next retry {again}"


def _read(config: Config, topic: str, ranges: Mapping[int, Span]) -> Iterator[WaitingHit]:
    unread_ranges = {number: span for number, span in ranges.items() if not span.is_empty}
    for record in read_ranges(config.kafka, topic, unread_ranges) if unread_ranges else ():
        hit = SetAsideHit.read(record.headers())  # type: ignore[arg-type] # a list; the type stub is wrong
        if hit is not None:
            wait_ms = round(wait_seconds(record.partition() or 0) * 1000)
            yield WaitingHit(hit, record, record.timestamp()[1] + wait_ms)
