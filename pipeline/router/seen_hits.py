"""The state of the route role: seen stores that follow the assignment, rebuilt from `seen-hits`.

A growth of hits-raw moves keys to other partitions, so all workers of one generation of the group must agree on the number of
partitions, and each must know the ids that its partitions had under earlier numbers:

- The number is what the group reads in this generation. The coordinator says it, so it is the same for all members.
- The counts in the blocks of one partition of seen-hits never fall. So a foreign partition is read only until its first block
  under the present number: one small fetch each, unless hits-raw has grown within the window.
- The window of a hit begins at its own append time, and after an outage of days the next hits are days old. So a rebuild
  begins a window before the oldest hit that is not routed yet, which seen-hits still holds (kafka/topics/declared.py).
- Transactions of an earlier generation have written their blocks before this one began, or they fail: the records of a
  transaction are acknowledged before its offsets are sent (kafka/transactions.py), and offsets of an earlier generation
  are refused. So a read up to the high watermark misses none.
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
from pipeline.kafka.client import answering, client_properties
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
"""How far the clocks of two brokers may be apart; the two topics may have different leaders."""
_FIRST_BLOCK_BYTES = 65_536
"""What one answer holds of each foreign partition, of which one block is wanted: more than the largest block has, because Kafka
answers with one partition at a time where a record is larger than that (1,000 partitions: 8 s instead of 0.2)."""


class SeenHits:
    """Listens to the assignment of `hits-raw` partitions and keeps the deduplicator's stores in step."""

    def __init__(self, config: Config, group: str, deduplicator: Deduplicator) -> None:
        self._config = config
        self._group = group
        self._names = TopicNames(config.kafka.topic_prefix)
        self._deduplicator = deduplicator
        self._most_partitions = 0

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        """Read the window's blocks for `partitions`; returns what installs the stores with the number of partitions.

        Without an agreed number nothing can be accepted: then no number is installed, and records wait for the next rebalance.
        Raises BrokerUnavailable, or KafkaRefuses when seen-hits cannot get the partitions that it needs.
        """
        owned = [tp.partition for tp in partitions]
        if not owned:
            return self.revoked
        number = assigned_count(self._config.kafka, self._group, self._names.hits_raw)
        if number is None:
            logger.info("assignment skipped: reason=rebalance_in_progress group=%s", self._group)
            return self.revoked
        since_ms = window_start(self._config, self._group, owned)
        rebuilt = read_seen_hits(self._config, self._names.seen_hits, owned, number, since_ms)
        most = max(self._most_partitions, rebuilt.most_partitions)
        # The leader's broker may not know of a growth that an earlier leader has known.
        if most > number and partition_count(self._config.kafka, self._names.hits_raw) > number:
            logger.warning("assignment skipped: reason=outdated partitions=%d partitions_before=%d", number, most)
            return self.revoked
        self._most_partitions = number
        stores = rebuilt.finish()
        return lambda: self._deduplicator.install(stores, number)

    def revoked(self) -> None:
        """Drop all stores: no partition is assigned."""
        self._deduplicator.install({}, None)


def window_start(config: Config, group: str, owned: Collection[int]) -> int | None:
    """Return a Unix time in milliseconds: ids that were written before it are outside of the window of all hits to come.

    None where hits-raw is empty, so that nothing says how late it is. Raises BrokerUnavailable.
    """
    kafka, topic = config.kafka, TopicNames(config.kafka.topic_prefix).hits_raw
    cluster = ClusterReader(kafka)
    committed = cluster.committed({group: topic})[group]
    found = spans(kafka, topic, committed=True)
    # A partition without a committed offset is new, or its group has been away for long: all of it may be read.
    unread = {
        (topic, number): Span(max(span.low, committed.get((topic, number), 0)), span.end)
        for number, span in found.items()
        if number in owned
    }
    next_ms = [first.written_ms for first in first_records(kafka, unread).values() if first.written_ms is not None]
    if len(next_ms) < len(owned):  # where nothing waits, the next hit is newer than everything in hits-raw
        newest_ms = cluster.newest_ms(topic, found).values()
        if not newest_ms:
            return None
        next_ms.append(max(newest_ms))
    window_ms = config.dedupe.window * 1000
    return int(min(next_ms) - window_ms - max(window_ms / SPANS_PER_WINDOW, _CLOCKS_MS))


def read_seen_hits(
    config: Config, topic: str, owned: list[int], partitions: int, since_ms: int | None = None
) -> SeenRebuild:
    """Return the rebuild of the stores of `owned` from `topic`: everything that is committed when this is called.

    `partitions` is the number that the group reads of hits-raw; seen-hits is grown when it has fewer. Blocks that were
    written before `since_ms` (Unix time in milliseconds) are left out, see `window_start`. Reads up to the end of
    the uncommitted records: the commit markers of one transaction reach its partitions at different times, and
    `read_committed` ends before the first open one. Raises BrokerUnavailable, KafkaRefuses.
    """
    kafka, began = config.kafka, time.monotonic()
    rebuilt = SeenRebuild(max(1, int(config.dedupe.window * 1000)), owned, partitions)
    found = spans(kafka, topic, committed=False)
    if len(found) < partitions:
        logger.info("topic grows: topic=%s partitions=%d new_partitions=%d", topic, len(found), partitions)
        with answering(kafka, f"the partitions of topic {topic}"):
            widen_topics(AdminClient(client_properties(kafka)), kafka, {topic: partitions})
        found = spans(kafka, topic, committed=False)
        if len(found) < partitions:
            raise BrokerUnavailable(f"topic {topic} shows {len(found)} of {partitions} partitions")
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
