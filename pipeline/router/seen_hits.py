"""The state of the route role: seen stores that follow the assignment, rebuilt from `seen-hits`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from faust.types import TP

from pipeline.codec.seen_block import decode_seen_block
from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.bounded_read import read_span
from pipeline.kafka.topics import TopicNames
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_store import SeenStore

logger = logging.getLogger("hitrouter.route")


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
    """Return the stores of `partitions` from `topic`: everything that is committed when this is called.

    Reads up to the end of the uncommitted records: the commit markers of one transaction reach its partitions at
    different times, and `read_committed` ends before the first open one. While Kafka is unavailable it is asked again.
    """
    window_ms = max(1, int(config.dedupe.window * 1000))
    began = time.monotonic()
    while True:
        stores = {partition: SeenStore(window_ms) for partition in partitions}
        blocks = 0
        try:
            for message in read_span(config.kafka, topic, settled=True, partitions=partitions):
                stores[message.partition() or 0].add_block(decode_seen_block(message.value() or b""))
                blocks += 1
            break
        except BrokerUnavailable as error:
            logger.warning("rebuild of the seen store starts again: %s", error)
    logger.info(
        "seen store rebuilt: ids=%d blocks=%d seconds=%.2f",
        sum(map(len, stores.values())),
        blocks,
        time.monotonic() - began,
    )
    return stores
