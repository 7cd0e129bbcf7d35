"""Routes one batch in one transaction. A hit whose content makes its batch fail becomes a dead letter."""

from __future__ import annotations

from functools import partial

from pipeline.kafka.expired import record_gaps
from pipeline.kafka.transport.batch import Batch, BatchConsumer
from pipeline.kafka.transport.faulty import FaultyRecords, content_errors
from pipeline.router.prepare import Preparer


async def route_batch(
    preparer: Preparer, ledger_topic: str, batch: Batch, consumer: BatchConsumer, faulty: FaultyRecords
) -> None:
    """Route `batch`. Raises StaleBatch, and errors that the content does not cause."""
    with faulty.isolating(batch, consumer):
        with content_errors():
            work = preparer.prepare(batch, faulty)
        try:
            async with consumer.transaction(batch) as outputs:
                with content_errors():
                    work.write(outputs)
                record_gaps(outputs, ledger_topic, "route", batch)
                outputs.after_commit(lambda: faulty.discard(batch))
                outputs.after_refusal(partial(faulty.isolate, batch, consumer))
        except BaseException:
            work.claim.discard()
            raise
