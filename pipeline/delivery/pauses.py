"""Connections that wait are noted in the ledger: it is read from anywhere, /readyz only where the worker runs."""

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

_LOOK_SECONDS = 0.5
_CLOSE_SECONDS = 5.0
_REASON_LIMIT = 600
"""Characters of a reason that the ledger keeps."""


def pause_entry(topic: str, connection: str, waiting: Waiting | None) -> LedgerEntry:
    """Return the entry that `connection` is misconfigured or failing, since when and why, or with None that it goes on.

    It counts nothing.
    """
    if waiting is None:
        counts = Counter({Entry("", connection, RESUMED): 1})
        return LedgerEntry("pause", topic, 0, 0, 0, round(time.time() * 1000), counts)
    outcome = MISCONFIGURED if waiting.misconfigured else FAILING
    why = f"{waiting.reason}: {waiting.said}" if waiting.said else waiting.reason
    counts = Counter({Entry("", connection, outcome, why[:_REASON_LIMIT]): 1})
    return LedgerEntry("pause", topic, 0, 0, 0, round(waiting.since * 1000), counts)


async def tell_pauses(stopped: Callable[[], bool], config: Config, board: WaitingConnections) -> None:
    """Write what connections wait for to the ledger, as PauseNotes has it, until `stopped`."""
    names = TopicNames(config.kafka.topic_prefix)
    producer: AcknowledgingProducer | None = None
    notes = PauseNotes()

    def reported(connection: str, note: Waiting | None, written: bool) -> None:
        if not written:
            notes.lost(connection, note)

    while not stopped():
        for connection, waiting in notes.due(board.connections, time.monotonic(), time.time()):
            producer = producer or AcknowledgingProducer(config.kafka)
            entry = encode_ledger_entry(pause_entry(names.deliveries(connection), connection, waiting))
            report = partial(reported, connection, waiting)
            if not producer.send(names.ledger, entry, connection.encode(), [], report):
                notes.lost(connection, waiting)
        await asyncio.sleep(_LOOK_SECONDS)
    if producer is not None:
        await producer.close(_CLOSE_SECONDS)
