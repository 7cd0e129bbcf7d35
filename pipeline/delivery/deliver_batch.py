"""Delivers one batch of one connection, then commits the settled outcomes with their dead letters and ledger entries."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from faust.types import TP

from pipeline.codec.dead_letter import DeadLetter
from pipeline.codec.ledger_entry import SET_ASIDE, Entry, LedgerEntry, encode_ledger_entry
from pipeline.codec.set_aside import SetAsideHit
from pipeline.delivery.deliverers import Deliverer, Received, RoutedHits, read_records
from pipeline.delivery.refusals import FinalOutcome, SetAside
from pipeline.delivery.settled import settled_count
from pipeline.destination import Delivered, Rejected, Skipped
from pipeline.errors import StaleBatch
from pipeline.kafka.dead_letter_record import produce_dead_letter
from pipeline.kafka.expired import record_gaps
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transport.batch import Batch, BatchConsumer, Outputs
from pipeline.kafka.transport.faulty import FaultyRecords, content_errors
from pipeline.telemetry.outcomes import count_outcomes

DELIVERY_FAILED = "delivery_failed"
"""The reason of a dead letter whose hit made its whole batch fail: a bug, or an output that Kafka rejects."""


async def deliver_batch(
    connection: str,
    names: TopicNames,
    hits: RoutedHits,
    deliverer: Deliverer,
    batch: Batch,
    consumer: BatchConsumer,
    wait_for_commit: bool,
    faulty: FaultyRecords,
) -> None:
    """Deliver `batch` and commit its outcomes. A hit whose content makes the batch fail becomes a dead letter.

    If a rebalance or a stop revokes the partitions meanwhile, the settled outcomes at the start of each partition are committed
    in the old generation, so that the next worker does not repeat them. With `wait_for_commit`, a crash repeats only this batch.
    Raises StaleBatch.
    """
    with faulty.isolating(batch, consumer):
        with consumer.guard(batch) as guard:
            received = await read_records(connection, hits, batch.records, guard.raise_if_stale)
            with content_errors():
                outcomes = await deliverer.deliver(_with_faults(received, faulty), guard) if received else {}
            counts = {tp: settled_count(part) for tp, part in outcomes.items()}
            is_whole = all(count == len(received[tp]) for tp, count in counts.items())
            settled = batch if is_whole else batch.first(counts)
            if not settled.next_offsets:
                raise StaleBatch(f"{connection}: no outcome of this batch is settled")
            decided = asyncio.Event()
            async with consumer.transaction(settled) as outputs:
                final = {tp: [o for o in part[: counts[tp]] if o is not None] for tp, part in outcomes.items()}
                outputs.after_commit(decided.set)
                outputs.after_commit(partial(faulty.discard, settled))
                outputs.after_commit(partial(count_outcomes, connection, map(outcome_name, _flat(final.values()))))
                outputs.after_abort(decided.set)
                outputs.after_refusal(partial(faulty.isolate, settled, consumer))
                with content_errors():
                    for tp, records in settled.records.items():
                        next_offset = (records[-1].offset() or 0) + 1
                        write_outcomes(
                            outputs, names, connection, tp, received[tp][: counts[tp]], final[tp], next_offset
                        )
                record_gaps(outputs, names.ledger, "deliver", settled, connection)
            if wait_for_commit or not is_whole:
                await decided.wait()
        if not is_whole:
            consumer.read_again(batch)


def _with_faults(received: Mapping[TP, Sequence[Received]], faulty: FaultyRecords) -> Mapping[TP, Sequence[Received]]:
    """Return `received` with each hit that is known to be faulty replaced by its rejection."""
    if not faulty:
        return received
    return {tp: [_with_fault(tp, one, faulty) for one in part] for tp, part in received.items()}


def _with_fault(tp: TP, received: Received, faulty: FaultyRecords) -> Received:
    why = faulty.get((tp, received.record.offset() or 0))
    return received if why is None else Received(received.record, Rejected(DELIVERY_FAILED, why))


def _flat(parts: Iterable[Sequence[FinalOutcome]]) -> list[FinalOutcome]:
    return [outcome for part in parts for outcome in part]


def outcome_name(outcome: FinalOutcome) -> str:
    """Return the name of an outcome as metrics show it."""
    return SET_ASIDE if isinstance(outcome, SetAside) else type(outcome).__name__.lower()


def final_entry(project: str, connection: str, outcome: Delivered | Skipped | Rejected) -> Entry:
    """Return the ledger entry of one outcome."""
    match outcome:
        case Delivered():
            return Entry(project, connection, "delivered")
        case Skipped(reason):
            return Entry(project, connection, "skipped", reason)
        case Rejected():
            return Entry(project, connection, "dead", outcome.reason)


def write_outcomes(
    outputs: Outputs,
    names: TopicNames,
    connection: str,
    tp: TP,
    received: Sequence[Received],
    outcomes: Sequence[FinalOutcome],
    next_offset: int,
) -> None:
    """Write the dead letters, the hits that are set aside, and the ledger entry of one partition."""
    counts: Counter[Entry] = Counter()
    now_ms = round(time.time() * 1000)
    for (record, read), outcome in zip(received, outcomes, strict=True):
        project = "" if isinstance(read, Rejected) else read.hit.projectId
        place = (tp.topic, tp.partition, record.offset() or 0)
        if isinstance(outcome, SetAside):
            counts[Entry(project, connection, SET_ASIDE, outcome.message)] += 1
            aside = SetAsideHit(connection, project, *place, now_ms, 1, outcome.text)
            outputs.produce(names.set_aside, record.value(), record.key(), aside.next_partition, aside.headers())
        elif isinstance(outcome, Delivered | Skipped | Rejected):
            counts[final_entry(project, connection, outcome)] += 1
        if isinstance(outcome, Rejected):
            is_public = not isinstance(read, Rejected) and read.hit.is_public
            dead_letter = DeadLetter(
                "deliver", outcome.reason, outcome.text, *place, now_ms, connection, project, is_public=is_public
            )
            produce_dead_letter(outputs, names.dead_letters, record.value(), record.key(), dead_letter.headers())
    entry = LedgerEntry(
        "deliver", tp.topic, tp.partition, received[0].record.offset() or 0, next_offset, now_ms, counts
    )
    outputs.produce(names.ledger, encode_ledger_entry(entry), connection.encode())
