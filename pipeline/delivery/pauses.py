"""Connections that wait for their operator, told to the ledger: it is read from anywhere, /readyz only where the worker runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial

from pipeline.codec.ledger_entry import Entry, LedgerEntry, encode_ledger_entry
from pipeline.config import Config
from pipeline.kafka.producer import AcknowledgingProducer
from pipeline.kafka.topics import TopicNames
from pipeline.telemetry.waiting import Board, Waiting

_LOOK_SECONDS = 0.5
_CLOSE_SECONDS = 5.0


def pause_entry(topic: str, connection: str, waiting: Waiting) -> LedgerEntry:
    """Return the entry which says that `connection` is misconfigured, since when and why; it counts nothing."""
    why = f"{waiting.reason}: {waiting.said}" if waiting.said else waiting.reason
    counts = Counter({Entry("", connection, "misconfigured", why): 1})
    return LedgerEntry("pause", topic, 0, 0, 0, round(waiting.since * 1000), counts)


async def tell_pauses(stopped: Callable[[], bool], config: Config, board: Board) -> None:
    """Write an entry at each probe that finds a connection misconfigured, until `stopped`.

    At each and not at the first alone, since an entry of another worker, which still had something to deliver, ends a pause.
    """
    names = TopicNames(config.kafka.topic_prefix)
    producer: AcknowledgingProducer | None = None
    told: dict[str, Waiting] = {}

    def reported(connection: str, written: bool) -> None:
        if not written:
            told.pop(connection, None)

    while not stopped():
        for connection, waiting in board.connections.items():
            if waiting.misconfigured and told.get(connection) is not waiting:
                told[connection] = waiting
                producer = producer or AcknowledgingProducer(config.kafka)
                entry = encode_ledger_entry(pause_entry(names.deliveries(connection), connection, waiting))
                if not producer.send(names.ledger, entry, connection.encode(), [], partial(reported, connection)):
                    told.pop(connection)
        await asyncio.sleep(_LOOK_SECONDS)
    if producer is not None:
        await producer.close(_CLOSE_SECONDS)
