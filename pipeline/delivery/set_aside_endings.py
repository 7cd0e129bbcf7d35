"""What became of hits that were set aside, as records of the transaction that moves the offsets of the topic `set-aside`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from faust.types import TP

from pipeline.codec.dead_letter import DeadLetter
from pipeline.codec.ledger_entry import SET_ASIDE_ENDED, Entry, LedgerEntry, encode_ledger_entry
from pipeline.codec.set_aside import SetAsideHit
from pipeline.delivery.deliver_batch import final_entry, outcome_name
from pipeline.delivery.deliverers import Received
from pipeline.destination import Delivered, Rejected, Skipped
from pipeline.kafka.dead_letter_record import produce_dead_letter
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transport.batch import Outputs
from pipeline.telemetry.outcomes import count_outcomes


@dataclass(frozen=True, slots=True)
class Ended:
    """The hit has a final outcome; `hit` is None for a record that no deliverer wrote."""

    outcome: Delivered | Skipped | Rejected
    hit: SetAsideHit | None


@dataclass(frozen=True, slots=True)
class Again:
    """The hit waits once more, on this partition."""

    hit: SetAsideHit
    partition: int


Ending = Ended | Again


def write_endings(
    outputs: Outputs, names: TopicNames, tp: TP, received: Sequence[Received], endings: Sequence[Ending]
) -> None:
    """Write the dead letters, the hits that wait once more, and the ledger entry of one partition of `set-aside`."""
    counts: Counter[Entry] = Counter()
    now_ms = round(time.time() * 1000)
    for (record, read), ending in zip(received, endings, strict=True):
        hit = ending.hit
        if isinstance(ending, Again):
            outputs.produce(names.set_aside, record.value(), record.key(), ending.partition, ending.hit.headers())
            continue
        origin = (tp.topic, tp.partition, record.offset() or 0)
        if hit is not None:
            # The place on the topic of the connection: `explain` and a replay know the hit by it.
            origin = (hit.topic, hit.partition, hit.offset)
            counts[final_entry(hit.project, hit.connection, ending.outcome)] += 1
            counts[Entry(hit.project, hit.connection, SET_ASIDE_ENDED)] += 1
            outputs.after_commit(partial(count_outcomes, hit.connection, [outcome_name(ending.outcome)]))
        if isinstance(ending.outcome, Rejected):
            connection, project = (hit.connection, hit.project) if hit is not None else ("", "")
            outcome = ending.outcome
            is_public = not isinstance(read, Rejected) and read.hit.is_public
            letter = DeadLetter(
                "deliver", outcome.reason, outcome.text, *origin, now_ms, connection, project, is_public=is_public
            )
            produce_dead_letter(outputs, names.dead_letters, record.value(), record.key(), letter.headers())
    first = received[0].record.offset() or 0
    following = (received[-1].record.offset() or 0) + 1
    entry = LedgerEntry("set_aside", tp.topic, tp.partition, first, following, now_ms, counts)
    outputs.produce(names.ledger, encode_ledger_entry(entry), b"%d" % tp.partition)
