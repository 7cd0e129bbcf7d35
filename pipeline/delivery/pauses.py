"""Writes pauses of connections to the ledger, which can be read from anywhere; /readyz shows only one worker."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from pipeline.codec.ledger_entry import FAILING, MISCONFIGURED, RESUMED, Entry, LedgerEntry, encode_ledger_entry
from pipeline.config import Config
from pipeline.delivery.pause_notes import PauseNotes
from pipeline.kafka.producer import AcknowledgingProducer
from pipeline.kafka.topics import TopicNames
from pipeline.telemetry.waiting import Waiting, WaitingConnections

_CHECK_SECONDS = 0.5
_CLOSE_SECONDS = 5.0
_REASON_LIMIT = 600
"""Most characters of a reason in the ledger."""


def pause_entry(topic: str, connection: str, waiting: Waiting | None) -> LedgerEntry:
    """Return the ledger entry of a pause of `connection`, with its start and reason. If `waiting` is None, the pause has ended.

    The entry counts no hits.
    """
    if waiting is None:
        counts = Counter({Entry("", connection, RESUMED): 1})
        return LedgerEntry("pause", topic, 0, 0, 0, round(time.time() * 1000), counts)
    outcome = MISCONFIGURED if waiting.misconfigured else FAILING
    why = f"{waiting.reason}: {waiting.said}" if waiting.said else waiting.reason
    counts = Counter({Entry("", connection, outcome, why[:_REASON_LIMIT]): 1})
    return LedgerEntry("pause", topic, 0, 0, 0, round(waiting.since * 1000), counts)


async def record_pauses(stopped: Callable[[], bool], config: Config, board: WaitingConnections) -> None:
    """Write the pauses that PauseNotes selects to the ledger, until `stopped` returns True."""
    names = TopicNames(config.kafka.topic_prefix)
    producer: AcknowledgingProducer | None = None
    notes = PauseNotes()

    def reported(connection: str, note: Waiting | None, written: bool) -> None:
        if not written:
            notes.mark_lost(connection, note)

    while not stopped():
        for connection, waiting in notes.due(board.connections, time.monotonic(), time.time()):
            producer = producer or AcknowledgingProducer(config.kafka)
            entry = encode_ledger_entry(pause_entry(names.deliveries(connection), connection, waiting))
            report = partial(reported, connection, waiting)
            if not producer.send(names.ledger, entry, connection.encode(), [], report):
                notes.mark_lost(connection, waiting)
        await asyncio.sleep(_CHECK_SECONDS)
    if producer is not None:
        await producer.close(_CLOSE_SECONDS)
