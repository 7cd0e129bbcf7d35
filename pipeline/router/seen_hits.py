"""The state of the route role: seen stores that follow the assignment, rebuilt from `seen-hits`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from faust.types import TP

from pipeline.codec.seen_block import decode_seen_block
from pipeline.config.models import Config
from pipeline.errors import WorkerMustRestart
from pipeline.kafka.client import client_properties
from pipeline.kafka.offsets import end_offsets
from pipeline.kafka.topics import TopicNames
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_store import SeenStore

logger = logging.getLogger("hitrouter.route")

_REBUILD_SECONDS = 240.0
_PROGRESS_SECONDS = 2.0


class SeenHits:
    """Listens to the assignment of `hits-raw` partitions and keeps the deduplicator's stores in step."""

    def __init__(self, config: Config, deduplicator: Deduplicator) -> None:
        self._config = config
        self._topic = TopicNames(config.kafka.topic_prefix).seen_hits
        self._deduplicator = deduplicator

    def rebuild(self, partitions: Iterable[TP]) -> Callable[[], None]:
        """Read the window's blocks of `partitions`; returns what installs the stores."""
        stores = rebuild_stores(self._config, self._topic, [tp.partition for tp in partitions])
        return lambda: self._deduplicator.install(stores)

    def revoked(self) -> None:
        """Nothing is ours any more."""
        self._deduplicator.install({})


def rebuild_stores(config: Config, topic: str, partitions: list[int]) -> dict[int, SeenStore]:
    """The stores of `partitions` from `topic`, everything that is committed when this is called.

    Reads up to the end of the uncommitted records: the commit markers of one transaction reach its partitions at
    different times, and `read_committed` ends before the first open one. Raises WorkerMustRestart after four minutes.
    """
    window_ms = max(1, int(config.dedupe.window * 1000))
    stores = {partition: SeenStore(window_ms) for partition in partitions}
    if not partitions:
        return stores
    began, deadline = time.monotonic(), time.monotonic() + _REBUILD_SECONDS
    ends = end_offsets(config.kafka, topic, committed=False, patience_seconds=_REBUILD_SECONDS)
    consumer = Consumer(
        client_properties(
            config.kafka,
            **{
                "group__id": f"{topic}-rebuild",  # librdkafka wants one; it is never joined
                "enable__auto__commit": False,
                "isolation__level": "read_committed",
                "auto__offset__reset": "earliest",
                "fetch__wait__max__ms": 50,
            },
        )
    )
    blocks = 0
    waiting = {partition for partition in partitions if ends[partition] > 0}
    try:
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in waiting])
        shown = began
        while waiting:
            for message in consumer.consume(1000, 0.1):
                if message.error() is not None:
                    logger.warning("while reading %s: %s", topic, message.error())
                    continue
                partition, value = message.partition(), message.value()
                if partition is None or value is None:
                    continue
                stores[partition].add_block(decode_seen_block(value))
                blocks += 1
            for position in consumer.position([TopicPartition(topic, partition) for partition in waiting]):
                if position.offset >= ends[position.partition]:
                    waiting.discard(position.partition)
            now = time.monotonic()
            if now > deadline:
                raise WorkerMustRestart(
                    f"{topic} {sorted(waiting)} could not be read to its end within {_REBUILD_SECONDS:.0f} s"
                )
            if now > shown + _PROGRESS_SECONDS:
                shown = now
                logger.info("rebuilding: %d ids, %d partitions to go", sum(map(len, stores.values())), len(waiting))
    finally:
        consumer.close()
    logger.info(
        "rebuilt %d ids from %d blocks in %.2f s", sum(map(len, stores.values())), blocks, time.monotonic() - began
    )
    return stores
