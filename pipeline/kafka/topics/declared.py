"""The topics as the configuration declares them (contract.md, section 2). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipeline.codec.set_aside import PARTITIONS as SET_ASIDE_PARTITIONS
from pipeline.config.models import Config

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS
_SEGMENTS_PER_RETENTION = 8
_LONGEST_SEGMENT_MS = 7 * _DAY_MS
"""Kafka's default of segment.ms."""


SET_ASIDE_MEMBER = "deliver.set-aside"
"""Name of the workers that retry the hits in `set-aside`, and of their group. No connection has a dot in its name."""


class TopicKind(StrEnum):
    """Purpose of a topic; the value is also its key in `kafka.retention`, if it has one."""

    HITS_RAW = "hits_raw"
    SEEN_HITS = "seen_hits"
    DEAD_LETTERS = "dead_letters"
    LEDGER = "ledger"
    DELIVERIES = "deliveries"
    SET_ASIDE = "set_aside"


@dataclass(frozen=True, slots=True)
class Topic:
    """One declared topic; `settings` holds Kafka's topic settings as strings.

    `connection` is set for deliveries. A retention below `required_retention_ms` breaks the delivery guarantee.
    """

    name: str
    kind: TopicKind
    partitions: int
    replication_factor: int
    settings: Mapping[str, str]
    connection: str = ""
    required_retention_ms: int = 0


class TopicNames:
    """The names of all topics under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.hits_raw = f"{prefix}hits-raw"
        self.dead_letters = f"{prefix}dead-letters"
        self.seen_hits = f"{prefix}seen-hits"
        self.ledger = f"{prefix}ledger"
        self.set_aside = f"{prefix}set-aside"
        self._deliveries = f"{prefix}deliveries-"

    def deliveries(self, connection: str) -> str:
        """Return the deliveries topic of `connection`."""
        return self._deliveries + connection

    def connection_of(self, topic: str) -> str | None:
        """Return the connection of `topic`; None if it is not a deliveries topic."""
        return topic.removeprefix(self._deliveries) if topic.startswith(self._deliveries) else None


def declare_topics(config: Config) -> list[Topic]:
    """Return all topics that `config` needs."""
    kafka, kept = config.kafka, config.kafka.retention
    names = TopicNames(kafka.topic_prefix)
    factor = kafka.replication_factor
    common = {
        "cleanup.policy": "delete",
        "retention.bytes": "-1",
        "min.insync.replicas": str(max(1, factor - 1)),
        "compression.type": "producer",
    }
    # The broker's clock controls the dedupe window and the retention of its ids (contract.md, section 5), so wrong clocks of
    # senders and workers have no effect.
    on_brokers_clock = {"message.timestamp.type": "LogAppendTime"}
    window_ms = round(config.dedupe.window * 1000)
    raw_ms = max(round(kept.hits_raw * 1000), window_ms)
    topics = [
        Topic(
            names.hits_raw,
            TopicKind.HITS_RAW,
            kafka.partitions,
            factor,
            {**common, **on_brokers_clock, **_retained(raw_ms, raw_ms)},
        ),
        Topic(
            names.seen_hits,
            TopicKind.SEEN_HITS,
            kafka.partitions,
            factor,
            # Even after a long outage of the routers: the oldest hit in hits-raw is at most `raw_ms` plus a segment old, and its
            # duplicate was written up to one window before it.
            {**common, **on_brokers_clock, **_retained(window_ms + raw_ms + _segment_ms(raw_ms), raw_ms)},
            required_retention_ms=window_ms,
        ),
    ]
    for name, kind, partitions, seconds in (
        (names.dead_letters, TopicKind.DEAD_LETTERS, kafka.partitions, kept.dead_letters),
        (names.ledger, TopicKind.LEDGER, 1, kept.ledger),
        # As long as the topics of its hits, since the workers may be stopped for that long, and far longer than its waits.
        (names.set_aside, TopicKind.SET_ASIDE, SET_ASIDE_PARTITIONS, max(kept.deliveries, _DAY_MS / 1000)),
    ):
        topics.append(Topic(name, kind, partitions, factor, {**common, **_retained_seconds(seconds)}))
    for name, connection in config.connections.items():
        seconds = kept.deliveries if connection.retention is None else connection.retention
        topics.append(
            Topic(
                names.deliveries(name),
                TopicKind.DELIVERIES,
                connection.partitions or kafka.partitions,
                factor,
                {**common, **_retained_seconds(seconds)},
                name,
            )
        )
    return topics


def _retained_seconds(seconds: float) -> dict[str, str]:
    milliseconds = round(seconds * 1000)
    return _retained(milliseconds, milliseconds)


def _retained(retention_ms: int, basis_ms: int) -> dict[str, str]:
    # Retention deletes whole segments, and a segment is closed only after `segment.ms`. With Kafka's default segments of
    # seven days, a retention of one day would last up to eight days.
    return {"retention.ms": str(retention_ms), "segment.ms": str(_segment_ms(basis_ms))}


def _segment_ms(retention_ms: int) -> int:
    return min(_LONGEST_SEGMENT_MS, max(_MINUTE_MS, retention_ms // _SEGMENTS_PER_RETENTION))
