"""Writes the results of retries of hits that were set aside, in the transaction that commits offsets of `set-aside`."""

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
class Finished:
    """The hit has a final outcome. `hit` is None if no deliverer wrote the record."""

    outcome: Delivered | Skipped | Rejected
    hit: SetAsideHit | None


@dataclass(frozen=True, slots=True)
class SetAsideAgain:
    """The hit is written to `set-aside` again, to this partition."""

    hit: SetAsideHit
    partition: int


RetryResult = Finished | SetAsideAgain


def write_results(
    outputs: Outputs, names: TopicNames, tp: TP, received: Sequence[Received], results: Sequence[RetryResult]
) -> None:
    """Write the dead letters, the hits that are set aside again, and the ledger entry of one partition of `set-aside`."""
    counts: Counter[Entry] = Counter()
    now_ms = round(time.time() * 1000)
    for (record, read), result in zip(received, results, strict=True):
        hit = result.hit
        if isinstance(result, SetAsideAgain):
            outputs.produce(names.set_aside, record.value(), record.key(), result.partition, result.hit.headers())
            continue
        origin = (tp.topic, tp.partition, record.offset() or 0)
        if hit is not None:
            # The position on the topic of the connection, by which `explain` and a replay identify the hit.
            origin = (hit.topic, hit.partition, hit.offset)
            counts[final_entry(hit.project, hit.connection, result.outcome)] += 1
            counts[Entry(hit.project, hit.connection, SET_ASIDE_ENDED)] += 1
            outputs.after_commit(partial(count_outcomes, hit.connection, [outcome_name(result.outcome)]))
        if isinstance(result.outcome, Rejected):
            connection, project = (hit.connection, hit.project) if hit is not None else ("", "")
            outcome = result.outcome
            is_public = not isinstance(read, Rejected) and read.hit.is_public
            dead_letter = DeadLetter(
                "deliver", outcome.reason, outcome.text, *origin, now_ms, connection, project, is_public=is_public
            )
            produce_dead_letter(outputs, names.dead_letters, record.value(), record.key(), dead_letter.headers())
    first = received[0].record.offset() or 0
    next_offset = (received[-1].record.offset() or 0) + 1
    entry = LedgerEntry("set_aside", tp.topic, tp.partition, first, next_offset, now_ms, counts)
    outputs.produce(names.ledger, encode_ledger_entry(entry), b"%d" % tp.partition)
