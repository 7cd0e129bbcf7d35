"""The state of the route role: seen stores of the assigned partitions, rebuilt from `seen-hits`.

If hits-raw gets more partitions, keys move to other partitions. So all workers of one generation of the group must use the
same number of partitions, and each must know the ids that its keys had under earlier numbers:

- The number is how many partitions the group reads in this generation. It comes from the group coordinator, so it is the
  same for all members.
- The partition count in the blocks of one seen-hits partition never decreases. So partitions of other workers are read only
  up to their first block with the current number: one small fetch each, unless hits-raw has grown within the window.
- The window of a hit ends at its own append time, and after an outage of days the next hits are days old. So a rebuild
  starts one window before the oldest hit that is not routed yet; seen-hits still holds it (kafka/topics/declared.py).
- A transaction of an earlier generation has written its blocks before this generation began, or it fails: its records are
  acknowledged before its offsets are sent (kafka/transactions.py), and Kafka rejects offsets of an earlier generation. So
  a read up to the high watermark misses no block.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable

from confluent_kafka import Message
from confluent_kafka.admin import AdminClient
from faust.types import TP

from pipeline.codec.seen_block import decode_seen_block, partitions_of_block
from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.bounded_read import read_ranges
from pipeline.kafka.client import client_properties, unavailable_on_error
from pipeline.kafka.first_records import first_records
from pipeline.kafka.offsets import Span, first_offsets_since, spans
from pipeline.kafka.partitions import assigned_count, partition_count
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.topics.changes import widen_topics
from pipeline.kafka.watermarks import ClusterReader
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_rebuild import SeenRebuild
from pipeline.stages.seen_store import SPANS_PER_WINDOW

logger = logging.getLogger(__name__)

_CLOCKS_MS = 60_000
"""Maximum difference between the clocks of two brokers, since the leaders of the two topics may differ."""
_FIRST_BLOCK_BYTES = 65_536
"""Bytes per partition in one fetch of the first block of other workers' partitions. Larger than any block: if a record is
larger than the limit, Kafka returns one partition at a time (8 s instead of 0.2 s for 1,000 partitions)."""


class SeenHits:
    """Rebuilds the deduplicator's stores for the assigned partitions of `hits-raw`."""

    def __init__(self, config: Config, group: str, deduplicator: Deduplicator) -> None:
        self._config = config
        self._group = group
        self._names = TopicNames(config.kafka.topic_prefix)
        self._deduplicator = deduplicator
        self._most_partitions = 0

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        """Read the blocks of the window for `partitions`; return the function that installs the stores.

        Without an agreed number of partitions no number is installed, and records wait for the next rebalance. Raises
        BrokerUnavailable, or KafkaRefuses if the missing partitions of seen-hits cannot be added.
        """
        owned = [tp.partition for tp in partitions]
        if not owned:
            return self.revoked
        number = assigned_count(self._config.kafka, self._group, self._names.hits_raw)
        if number is None:
            logger.info("assignment skipped, rebalance in progress: group=%s", self._group)
            return self.revoked
        since_ms = window_start(self._config, self._group, owned)
        rebuilt = read_seen_hits(self._config, self._names.seen_hits, owned, number, since_ms)
        most = max(self._most_partitions, rebuilt.most_partitions)
        # The group leader may have outdated metadata, without partitions that an earlier leader knew.
        if most > number and partition_count(self._config.kafka, self._names.hits_raw) > number:
            logger.warning("assignment skipped, it is outdated: partitions=%d partitions_before=%d", number, most)
            return self.revoked
        self._most_partitions = number
        stores = rebuilt.finish()
        return lambda: self._deduplicator.install(stores, number)

    def revoked(self) -> None:
        """Drop all stores, since no partition is assigned."""
        self._deduplicator.install({}, None)


def window_start(config: Config, group: str, owned: Collection[int]) -> int | None:
    """Return a Unix time in milliseconds such that ids written earlier are outside of the window of all unrouted hits.

    None if hits-raw is empty, because there is no timestamp to derive it from. Raises BrokerUnavailable.
    """
    kafka, topic = config.kafka, TopicNames(config.kafka.topic_prefix).hits_raw
    cluster = ClusterReader(kafka)
    committed = cluster.committed({group: topic})[group]
    found = spans(kafka, topic, committed=True)
    # A partition without a committed offset is new, or the offset has expired; all of it may be read.
    unread = {
        (topic, number): Span(max(span.low, committed.get((topic, number), 0)), span.end)
        for number, span in found.items()
        if number in owned
    }
    next_ms = [first.written_ms for first in first_records(kafka, unread).values() if first.written_ms is not None]
    if len(next_ms) < len(owned):  # the next hit of a partition without backlog is newer than all of hits-raw
        newest_ms = cluster.newest_ms(topic, found).values()
        if not newest_ms:
            return None
        next_ms.append(max(newest_ms))
    window_ms = config.dedupe.window * 1000
    return int(min(next_ms) - window_ms - max(window_ms / SPANS_PER_WINDOW, _CLOCKS_MS))


def read_seen_hits(
    config: Config, topic: str, owned: list[int], partitions: int, since_ms: int | None = None
) -> SeenRebuild:
    """Rebuild the stores of the partitions in `owned` from all blocks of `topic` committed before this call.

    `partitions` is the number of hits-raw partitions that the group reads; seen-hits gets more partitions if it has fewer.
    Blocks written before `since_ms` (Unix milliseconds) are skipped, see `window_start`. Reads up to the high watermark: the
    commit markers of a transaction reach its partitions at different times, and a read up to the last stable offset would
    end before the first open transaction. Raises BrokerUnavailable, KafkaRefuses.
    """
    kafka, began = config.kafka, time.monotonic()
    rebuilt = SeenRebuild(max(1, int(config.dedupe.window * 1000)), owned, partitions)
    found = spans(kafka, topic, committed=False)
    if len(found) < partitions:
        logger.info("adding partitions: topic=%s partitions=%d new_partitions=%d", topic, len(found), partitions)
        with unavailable_on_error(kafka, f"the partitions of topic {topic}"):
            widen_topics(AdminClient(client_properties(kafka)), kafka, {topic: partitions})
        found = spans(kafka, topic, committed=False)
        if len(found) < partitions:
            raise BrokerUnavailable(
                f"topic {topic} has {len(found)} of {partitions} partitions; check the brokers at {kafka.servers}"
            )
    if since_ms is not None:
        starts = first_offsets_since(kafka, topic, since_ms)
        found = {number: Span(max(span.low, starts.get(number, span.low)), span.end) for number, span in found.items()}
    own = {number: found.pop(number) for number in owned}
    blocks = 0
    for message in read_ranges(kafka, topic, own):
        rebuilt.add(message.partition() or 0, decode_seen_block(message.value() or b""))
        blocks += 1

    def is_current(message: Message) -> bool:
        return rebuilt.is_current(partitions_of_block(message.value() or b""))

    older: dict[int, Span] = {}
    for message in read_ranges(kafka, topic, found, is_last=lambda _: True, fetch_bytes=_FIRST_BLOCK_BYTES):
        if not is_current(message):
            older[message.partition() or 0] = Span(message.offset() or 0, found[message.partition() or 0].end)
    for message in read_ranges(kafka, topic, older, is_last=is_current):
        rebuilt.add(message.partition() or 0, decode_seen_block(message.value() or b""))
        blocks += 1
    logger.info(
        "seen store rebuilt: partitions=%d own=%d grown_from=%d blocks=%d seconds=%.2f",
        partitions,
        len(owned),
        len(older),
        blocks,
        time.monotonic() - began,
    )
    return rebuilt
