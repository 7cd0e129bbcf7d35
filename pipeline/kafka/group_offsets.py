"""Reads the committed offsets of a consumer group, and repeats the request until the answer is definite."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from faust.types import TP

from pipeline.errors import BrokerUnavailable
from pipeline.kafka.client import RepeatFilter
from pipeline.kafka.daemon_thread import close_in_background
from pipeline.kafka.stuck import StuckWatch

logger = logging.getLogger(__name__)
_repeated = logging.getLogger(f"{__name__}.repeated")
_repeated.addFilter(RepeatFilter())

_SLICE_SECONDS = 3.0
_PAUSE_SECONDS = 0.2


NEVER_COMMITTED = -1
"""Offset of a partition without a committed offset: the group is new, or its offsets have expired."""
Recover = Callable[[Sequence[TP]], Mapping[TP, int]]
"""Returns the next offset of each given partition that another source knows. Blocks; raises BrokerUnavailable."""


@dataclass(slots=True)
class GroupOffsets:
    """Reads the committed offsets of a group. `properties` are those of the consumers in the group.

    All methods block, and return None once `stopped` is set. They use the given consumer, or a new client that never joins
    the group. A client that fails for 15 s is replaced: after a broker restart, one timed out for seven minutes.
    """

    properties: Mapping[str, Any]
    stopped: threading.Event
    make: Callable[[dict[str, Any]], Consumer] = Consumer
    clock: Callable[[], float] = time.monotonic

    def starting_offsets(self, partitions: Sequence[TP], recover: Recover, consumer: Consumer) -> dict[TP, int] | None:
        """Return the first offset to read of each partition: the committed offset, else the one from `recover`, else 0."""
        found = self.stable_offsets(partitions, consumer)
        if found is None:
            return None
        missing = [tp for tp, offset in found.items() if offset == NEVER_COMMITTED]
        while missing and not self.stopped.is_set():
            try:
                known = recover(missing)
            except BrokerUnavailable as error:
                _repeated.warning("offset recovery failed, will retry: error=%s", error)
                self.stopped.wait(_PAUSE_SECONDS)
                continue
            return found | {tp: known.get(tp, 0) for tp in missing}
        return None if missing else found

    def stable_offsets(self, partitions: Sequence[TP], consumer: Consumer | None = None) -> dict[TP, int] | None:
        """Return the next offset of each partition, or NEVER_COMMITTED.

        Waits for pending transactions that commit these offsets, since the group reads committed records (KIP-447,
        RequireStable). Retries timeouts and errors in short requests, so that a stop takes effect soon.
        """
        asked = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
        if not asked:
            return {}
        watch = StuckWatch()
        client, is_own = (self._client(), True) if consumer is None else (consumer, False)
        try:
            while not self.stopped.is_set():
                found = self._ask(client, asked)
                if isinstance(found, dict):
                    return found
                _repeated.warning(
                    "committed offsets not available, will retry: group=%s error=%s", self.properties["group.id"], found
                )
                if watch.observe(False, self.clock()):
                    reason = self._probable_cause(asked) if is_own else "the consumer gets no response"
                    logger.error(
                        "committed offsets not available, using a new client: group=%s reason=%s",
                        *(self.properties["group.id"], reason),
                    )
                    if is_own:
                        close_in_background(client.close)
                    client, is_own = self._client(), True
                self.stopped.wait(_PAUSE_SECONDS)
            return None
        finally:
            if is_own:
                close_in_background(client.close)

    def _probable_cause(self, asked: Sequence[TopicPartition]) -> str:
        """Return why there are no offsets. A read_uncommitted client gets them even while a transaction is open."""
        client = self._client("read_uncommitted")
        answered = isinstance(self._ask(client, asked), dict)
        close_in_background(client.close)
        if answered:
            return (
                "an open transaction blocks them; if this lasts for minutes, run `kafka-transactions.sh find-hanging`"
            )
        return "Kafka does not respond"

    def _client(self, isolation: str = "read_committed") -> Consumer:
        return self.make({**self.properties, "isolation.level": isolation})

    def _ask(self, client: Consumer, asked: Sequence[TopicPartition]) -> dict[TP, int] | str:
        """Return the offsets, or the error text."""
        try:
            found = client.committed(list(asked), timeout=_SLICE_SECONDS)
        except KafkaException as raised:
            return f"{raised.args[0].name()}: {raised.args[0].str()}"
        for partition in found:
            if partition.error is not None:
                return f"{partition.error.name()}: {partition.error.str()}"
        return {TP(p.topic, p.partition): max(NEVER_COMMITTED, p.offset) for p in found}
