"""The committed offsets of a consumer group, asked for until Kafka gives a definite answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition
from faust.types import TP

from pipeline.kafka.client import OnceInAWhile

logger = logging.getLogger("hitrouter.kafka.offsets")
logger.addFilter(OnceInAWhile())

_SLICE_SECONDS = 3.0
_PAUSE_SECONDS = 0.2


def stable_offsets(consumer: Consumer, partitions: Sequence[TP], stopped: threading.Event) -> dict[TP, int] | None:
    """Return the next offset of each partition; 0 where nothing was ever committed. None once
    `stopped` is set.

    `consumer` reads committed records, so this waits for pending transactions on these offsets (KIP-447, RequireStable). A
    broker that does not answer, or refuses for now, is asked again, in slices so that a stop comes through.
    """
    asked = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
    while asked and not stopped.is_set():
        try:
            found = consumer.committed(asked, timeout=_SLICE_SECONDS)
            failed = [partition.error for partition in found if partition.error is not None]
            if not failed:
                return {TP(p.topic, p.partition): max(0, p.offset) for p in found}
            error = failed[0]
        except KafkaException as raised:
            error = raised.args[0]
        logger.warning("committed offsets are asked for again: error=%s: %s", error.name(), error.str())
        stopped.wait(_PAUSE_SECONDS)
    return None if asked else {}
