"""The committed offsets of a consumer group, asked for until Kafka gives a definite answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition
from faust.types import TP

from pipeline.errors import BrokerUnavailable
from pipeline.kafka.client import OnceInAWhile

logger = logging.getLogger("hitrouter.kafka.offsets")
logger.addFilter(OnceInAWhile())

_SLICE_SECONDS = 3.0
_PAUSE_SECONDS = 0.2


NEVER_COMMITTED = -1
"""Stands for the offset of a partition for which Kafka holds none: the group is new, or its offsets have expired."""
Recover = Callable[[Sequence[TP]], Mapping[TP, int]]
"""Returns where to read on for those of the partitions that are known elsewhere. Blocks; raises BrokerUnavailable."""


def starting_offsets(
    consumer: Consumer, partitions: Sequence[TP], recover: Recover, stopped: threading.Event
) -> dict[TP, int] | None:
    """Return where to begin to read each partition: at the committed offset, else as `recover` says, else at 0.

    Returns None once `stopped` is set.
    """
    found = stable_offsets(consumer, partitions, stopped)
    if found is None:
        return None
    missing = [tp for tp, offset in found.items() if offset == NEVER_COMMITTED]
    while missing and not stopped.is_set():
        try:
            known = recover(missing)
        except BrokerUnavailable as error:
            logger.warning("offsets are not known yet, will ask again: error=%s", error)
            stopped.wait(_PAUSE_SECONDS)
            continue
        return found | {tp: known.get(tp, 0) for tp in missing}
    return None if missing else found


def stable_offsets(consumer: Consumer, partitions: Sequence[TP], stopped: threading.Event) -> dict[TP, int] | None:
    """Return the next offset of each partition, or NEVER_COMMITTED; None once `stopped` is set.

    `consumer` reads committed records, so this waits for pending transactions on these offsets (KIP-447, RequireStable). A
    broker that does not answer, or refuses for now, is asked again, in slices so that a stop comes through.
    """
    asked = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
    while asked and not stopped.is_set():
        try:
            found = consumer.committed(asked, timeout=_SLICE_SECONDS)
            failed = [partition.error for partition in found if partition.error is not None]
            if not failed:
                return {TP(p.topic, p.partition): max(NEVER_COMMITTED, p.offset) for p in found}
            error = failed[0]
        except KafkaException as raised:
            error = raised.args[0]
        logger.warning("committed offsets are asked for again: error=%s: %s", error.name(), error.str())
        stopped.wait(_PAUSE_SECONDS)
    return None if asked else {}
