"""Writes ledger entries for offsets that retention deleted before a worker read them."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Literal

from faust.types import TP

from pipeline.codec.ledger_entry import encode_ledger_entry, expired_entry
from pipeline.kafka.topics.declared import SET_ASIDE_MEMBER
from pipeline.kafka.transport.batch import Batch, Outputs
from pipeline.kafka.transport.gaps import Gap
from pipeline.telemetry.backlog import EXPIRED_OFFSETS

logger = logging.getLogger(__name__)


def record_gaps(
    outputs: Outputs,
    ledger_topic: str,
    role: Literal["route", "deliver", "set_aside"],
    batch: Batch,
    connection: str = "",
) -> None:
    """Write one ledger entry per gap of `batch`, in the transaction that commits the offsets after it.

    Logs and counts each gap after the commit, so that it counts once. Topics of deliveries and `set-aside` are written
    only by transactions, so a single offset at their end is a commit marker and no gap.
    """
    for tp, gap in batch.gaps.items():
        if role != "route" and gap.is_last_marker:
            continue
        now_ms = round(time.time() * 1000)
        entry = expired_entry(role, tp.topic, tp.partition, gap.first, gap.following, now_ms, connection)
        outputs.produce(ledger_topic, encode_ledger_entry(entry), (connection or str(tp.partition)).encode())
        outputs.after_commit(partial(_report, tp, gap, SET_ASIDE_MEMBER if role == "set_aside" else connection))


def _report(tp: TP, gap: Gap, connection: str) -> None:
    EXPIRED_OFFSETS.labels(connection).inc(gap.offsets)
    logger.error(
        "records expired before they were read: topic=%s partition=%d first_offset=%d last_offset=%d connection=%s "
        "advice=%s",
        *(tp.topic, tp.partition, gap.first, gap.following - 1, connection or "-"),
        "run `hitrouter ledger` to see the number of hits",
    )
