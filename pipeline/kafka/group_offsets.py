"""The committed offsets of a consumer group, asked for until Kafka gives a definite answer."""

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
from pipeline.kafka.daemon_thread import close_beside
from pipeline.kafka.stuck import StuckWatch

logger = logging.getLogger(__name__)
_repeated = logging.getLogger(f"{__name__}.repeated")
_repeated.addFilter(RepeatFilter())

_SLICE_SECONDS = 3.0
_PAUSE_SECONDS = 0.2


NEVER_COMMITTED = -1
"""Stands for the offset of a partition for which Kafka holds none: the group is new, or its offsets have expired."""
Recover = Callable[[Sequence[TP]], Mapping[TP, int]]
"""Returns where to read on for those of the partitions that are known elsewhere. Blocks; raises BrokerUnavailable."""


@dataclass(slots=True)
class GroupOffsets:
    """The offsets of the group of `properties`, which are those of its consumers. All calls return None once `stopped` is set.

    They block, and ask with the consumer that they are given, or with a client of their own, which never joins. A client that
    fails for 15 s is replaced: after a broker restart one timed out for seven minutes.
    """

    properties: Mapping[str, Any]
    stopped: threading.Event
    make: Callable[[dict[str, Any]], Consumer] = Consumer
    clock: Callable[[], float] = time.monotonic

    def starting(self, partitions: Sequence[TP], recover: Recover, consumer: Consumer) -> dict[TP, int] | None:
        """Where to begin to read each partition: at the committed offset, else as `recover` says, else at 0."""
        found = self.stable(partitions, consumer)
        if found is None:
            return None
        missing = [tp for tp, offset in found.items() if offset == NEVER_COMMITTED]
        while missing and not self.stopped.is_set():
            try:
                known = recover(missing)
            except BrokerUnavailable as error:
                _repeated.warning("offsets are not known yet, will ask again: error=%s", error)
                self.stopped.wait(_PAUSE_SECONDS)
                continue
            return found | {tp: known.get(tp, 0) for tp in missing}
        return None if missing else found

    def stable(self, partitions: Sequence[TP], consumer: Consumer | None = None) -> dict[TP, int] | None:
        """The next offset of each partition, or NEVER_COMMITTED.

        The consumers read committed records, so this waits for pending transactions on these offsets (KIP-447, RequireStable).
        A broker that does not answer, or refuses for now, is asked again, in slices so that a stop comes through.
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
                    "committed offsets are asked for again: group=%s error=%s", self.properties["group.id"], found
                )
                if watch.observe(False, self.clock()):
                    reason = self._why_not(asked) if is_own else "the consumer gets no answer"
                    logger.error(
                        "committed offsets are asked for with a new client: group=%s reason=%s",
                        *(self.properties["group.id"], reason),
                    )
                    if is_own:
                        close_beside(client.close)
                    client, is_own = self._client(), True
                self.stopped.wait(_PAUSE_SECONDS)
            return None
        finally:
            if is_own:
                close_beside(client.close)

    def _why_not(self, asked: Sequence[TopicPartition]) -> str:
        """Return the probable cause. A read_uncommitted client is answered also while a transaction is open."""
        client = self._client("read_uncommitted")
        answered = isinstance(self._ask(client, asked), dict)
        close_beside(client.close)
        if answered:
            return (
                "Kafka holds them back for a transaction that has not ended; if it stays so for minutes, "
                "`kafka-transactions.sh find-hanging` finds it"
            )
        return "Kafka does not answer"

    def _client(self, isolation: str = "read_committed") -> Consumer:
        return self.make({**self.properties, "isolation.level": isolation})

    def _ask(self, client: Consumer, asked: Sequence[TopicPartition]) -> dict[TP, int] | str:
        """The offsets, or why there are none."""
        try:
            found = client.committed(list(asked), timeout=_SLICE_SECONDS)
        except KafkaException as raised:
            return f"{raised.args[0].name()}: {raised.args[0].str()}"
        for partition in found:
            if partition.error is not None:
                return f"{partition.error.name()}: {partition.error.str()}"
        return {TP(p.topic, p.partition): max(NEVER_COMMITTED, p.offset) for p in found}
