"""The committed offsets of a consumer group, asked for until Kafka gives a definite answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition
from faust.types import TP

from pipeline.kafka.client import OnceInAWhile

logger = logging.getLogger("hitrouter.kafka.offsets")
logger.addFilter(OnceInAWhile())

_SLICE_SECONDS = 3.0
_PAUSE_SECONDS = 0.2


NEVER_COMMITTED = -1
"""Stands for the offset of a partition for which Kafka holds none: the group is new, or its offsets have expired."""
Recover = Callable[[Sequence[TP]], Mapping[TP, int]]
"""Returns where to read on for those of the partitions that are known elsewhere. Blocks; raises BrokerUnavailable."""


def recovered_offsets(found: Mapping[TP, int], recover: Recover) -> dict[TP, int]:
    """Return where to begin to read each partition: at its offset in `found`, else as `recover` says, else at 0.

    Raises BrokerUnavailable.
    """
    missing = [tp for tp, offset in found.items() if offset == NEVER_COMMITTED]
    known = recover(missing) if missing else {}
    return {**found, **{tp: known.get(tp, 0) for tp in missing}}


def ask_offsets(consumer: Consumer, partitions: Sequence[TP]) -> dict[TP, int] | None:
    """Return the next offset of each partition, or NEVER_COMMITTED. None: the broker gave no answer within three seconds.

    `consumer` reads committed records, so Kafka answers only once pending transactions on these offsets are decided (KIP-447,
    RequireStable).
    """
    if not partitions:
        return {}
    try:
        found = consumer.committed(
            [TopicPartition(tp.topic, tp.partition) for tp in partitions], timeout=_SLICE_SECONDS
        )
        failed = [partition.error for partition in found if partition.error is not None]
        if not failed:
            return {TP(p.topic, p.partition): max(NEVER_COMMITTED, p.offset) for p in found}
        error = failed[0]
    except KafkaException as raised:
        error = raised.args[0]
    logger.warning("committed offsets are asked for again: error=%s: %s", error.name(), error.str())
    return None


def stable_offsets(consumer: Consumer, partitions: Sequence[TP], stopped: threading.Event) -> dict[TP, int] | None:
    """Ask for the offsets of `partitions` until there is an answer; None once `stopped` is set. See `ask_offsets`."""
    while not stopped.is_set():
        found = ask_offsets(consumer, partitions)
        if found is not None:
            return found
        stopped.wait(_PAUSE_SECONDS)
    return None
