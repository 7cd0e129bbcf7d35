"""Runs the transactions of one consumer: one at a time, each completed before the next, and none across assignments.

Runs on the loop. Each assignment, revocation and abort replaces the `Assignment`, and a batch of an earlier one is dropped.
`docs/explanation/how-it-works.md` describes the rules; tests/unit/test_committer.py checks them with random events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, NoReturn

from confluent_kafka import TopicPartition
from faust.types import TP

from pipeline.errors import ContentError, OutcomeUnknown, RecordsRefused, StaleBatch, TransactionAborted
from pipeline.kafka.slot_state import Outcome, outcome_of
from pipeline.kafka.transport.assignment import Assignment, Phase
from pipeline.kafka.transport.batch import FAILURES_IN_A_ROW, Batch, BatchGuard, Outputs
from pipeline.kafka.transport.batch_limit import BatchLimit
from pipeline.kafka.transport.protocols import Membership, SlotProducer
from pipeline.kafka.transport.side_effects import SideEffects

logger = logging.getLogger(__name__)

_SLOW_COMMIT_SECONDS = 0.25
_SLOW_TRANSACTION_SECONDS = 5.0
_ABORT_PAUSES_SECONDS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Committer:
    """Opens, commits and aborts transactions for batches of the current assignment."""

    def __init__(
        self,
        group: str,
        producer: SlotProducer,
        blocking: Callable[..., Awaitable[Any]],
        membership: Callable[[], Membership],
        end_process: Callable[[str], NoReturn],
        is_stopping: Callable[[], bool],
        replaced: Callable[[Assignment], None] = lambda assignment: None,
        batch_records: int = 2000,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.assignment = Assignment()
        """The current one."""
        self.limit = BatchLimit(batch_records)
        """Limits the records of the next batch."""
        self.committed_at: float | None = None
        """Time on `clock` of the last committed batch."""
        self.room = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._group = group
        self._producer = producer
        self._blocking = blocking
        self._membership = membership
        self._end_process = end_process
        self._is_stopping = is_stopping
        self._replaced = replaced
        self._clock = clock
        self._sleep = sleep
        self._failures = self._aborts = 0
        self._not_before = 0.0
        self._began_at = self._took_seconds = 0.0
        self._side_effects = SideEffects(membership, clock)
        self._verifying = asyncio.Lock()
        self._renews_when_assigned = False
        self._task: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None

    # Assignments -----------------------------------------------------------------------------------------------------

    def invalidate(self) -> None:
        """Make all batches in flight stale."""
        self._replace(self.assignment.phase)

    def handed_out(self) -> None:
        """Record that a batch of the current assignment is handed to the agent."""
        self.assignment.in_flight += 1

    async def leave(self, grace_seconds: float) -> None:
        """Wait up to `grace_seconds` for side effects in flight to end and commit, then make all batches stale.

        Afterwards no earlier batch can commit, and no transaction is open.
        """
        if self.assignment.leave_until is None:
            self.assignment.leave(self._clock() + grace_seconds)
        await self._side_effects.wait((self.assignment.leave_until or 0.0) - self._clock())
        if self.assignment.leave_until is None:  # partitions were assigned during the wait of a stop
            self.assignment.leave(self._clock())
        is_unknown = self.assignment.phase is Phase.UNKNOWN
        self._replace(Phase.UNKNOWN if is_unknown else Phase.LEFT, must_rewind=True)
        await self.idle.wait()

    def assigned(self, offsets: Mapping[TP, int]) -> None:
        """Start a new assignment. No transaction may be open."""
        self._replace(Phase.READING, offsets)
        if offsets and self._renews_when_assigned:
            self._renewal = asyncio.create_task(self._renew())

    def released(self) -> None:
        """Record that no partition is assigned any more; call it after `leave`."""
        self._replace(Phase.RELEASED, {})

    def raise_if_stale(self, batch: Batch) -> None:
        """Raise StaleBatch if no more work may be started for `batch`."""
        self._raise_if_replaced(batch.assignment)
        if self.assignment.phase is not Phase.READING or self._is_stopping():
            raise StaleBatch("the partitions of this batch are being released")

    def _raise_if_replaced(self, assignment: object) -> None:
        if assignment is not self.assignment:
            raise StaleBatch("a rebalance, an abort or a failure has replaced the assignment of this batch")

    def _replace(self, phase: Phase, offsets: Mapping[TP, int] | None = None, must_rewind: bool = False) -> None:
        self.assignment = self.assignment.replaced(phase, offsets, must_rewind)
        self.room.set()
        self._replaced(self.assignment)

    @property
    def is_slow(self) -> bool:
        """True while a commit takes so long that the next batch should grow in the meantime."""
        if self.idle.is_set():
            return False
        return max(self._took_seconds, self._clock() - self._began_at) > _SLOW_COMMIT_SECONDS

    # Side effects ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def guard(self, batch: Batch) -> Iterator[BatchGuard]:
        """Mark side effects of `batch` as in flight; `leave` waits for the end of the block."""
        self.raise_if_stale(batch)
        with self._side_effects.in_flight():
            yield _Guard(self, batch)

    async def verify(self, batch: Batch) -> None:
        """Return once Kafka has confirmed the slot and the group membership. Raises StaleBatch.

        Commits the current offsets again in a transaction: the transaction coordinator checks the producer, and the group
        coordinator checks the member and its generation (KIP-447). An empty transaction would contact neither.
        """
        if not self._side_effects.need_confirmation:
            return
        async with self._verifying:
            while self._side_effects.need_confirmation:
                self.raise_if_stale(batch)
                positions: dict[TP, int] = {}
                decided = asyncio.Event()
                async with self._transaction(batch.assignment, positions, counts=False) as outputs:
                    # Read the offsets only now: the previous batch may have been committed while this waited.
                    positions.update((tp, self.assignment.offsets[tp]) for tp in batch.next_offsets)
                    outputs.after_commit(decided.set)
                    outputs.after_abort(decided.set)
                await decided.wait()
        self.raise_if_stale(batch)

    # Transactions ----------------------------------------------------------------------------------------------------

    def transaction(self, batch: Batch) -> contextlib.AbstractAsyncContextManager[Outputs]:
        """Open the transaction of `batch`. The end of the block starts the commit, which runs in the background.

        The next batch can be prepared during that commit. Raises StaleBatch if the batch must be dropped.
        """
        return self._transaction(batch.assignment, batch.next_offsets, counts=True)

    @contextlib.asynccontextmanager
    async def _transaction(self, assignment: object, offsets: Mapping[TP, int], counts: bool) -> AsyncIterator[Outputs]:
        while not self.idle.is_set():
            await self.idle.wait()
        if (pause := self._not_before - self._clock()) > 0 and assignment is self.assignment:
            await self._sleep(pause)
        while not self.idle.is_set():
            await self.idle.wait()
        self._raise_if_replaced(assignment)
        self.idle.clear()
        self._began_at = self._clock()
        outputs = Outputs(self._producer)
        try:
            self._producer.begin()
            yield outputs
        except TransactionAborted as error:
            await self._abort(outputs, str(error))
            raise StaleBatch(str(error)) from error
        except ContentError as error:
            await self._abort(outputs, str(error), is_content=True)
            raise
        except BaseException as error:
            await self._abort(outputs, repr(error))
            raise
        self._task = asyncio.create_task(self._commit(assignment, offsets, outputs, counts))

    async def renew(self) -> None:
        """Renew the producer after an outage of all brokers, unless a transaction is open; that one detects a lost producer.

        A producer may hang in its first call after an outage, and the next hit would wait until this is detected. A new
        producer fences any other process with this slot. A worker that has no partitions, or was suspended past its session
        timeout, may have lost its slot to another process. So it renews its producer with its next assignment.
        """
        if not self.assignment.offsets or self._side_effects.was_suspended:
            self._renews_when_assigned = True
        else:
            await self._renew()

    async def _renew(self) -> None:
        self._renews_when_assigned = False
        if not self.idle.is_set() or self._is_stopping():
            return
        self.idle.clear()
        await self._call_or_exit(self._producer.renew)
        self.idle.set()

    def failed(self, batch: Batch, error: Exception) -> None:
        """Handle a batch that the agent could not process (a bug): read it again, and exit after the third failure."""
        self._failures += 1
        logger.error("batch failed: attempt=%d attempts=%d", self._failures, FAILURES_IN_A_ROW, exc_info=error)
        if self._failures >= FAILURES_IN_A_ROW:
            where = ", ".join(f"{tp.topic}-{tp.partition} below {offset}" for tp, offset in batch.next_offsets.items())
            self._end_process(f"{self._failures} consecutive failures at {where}: {error!r}")
        if batch.assignment is self.assignment:
            self.read_again()

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """Read the records of `batch` again, in batches of half its size."""
        logger.warning(
            "batch failed because of its content: group=%s records=%d reason=%s", self._group, len(batch), error
        )
        self.limit.content_failed(len(batch))
        if batch.assignment is self.assignment:
            self.read_again()

    def read_again(self) -> None:
        """Make batches in flight stale and read again from the committed offsets."""
        self._replace(self.assignment.phase, must_rewind=True)

    async def _commit(self, assignment: object, offsets: Mapping[TP, int], outputs: Outputs, counts: bool) -> None:
        try:
            await self._complete(assignment, offsets, outputs, counts)
        except Exception as error:
            # A fence or a bug: the state in memory may differ from Kafka from here on.
            self._end_process(str(error) or repr(error))

    async def _complete(self, assignment: object, offsets: Mapping[TP, int], outputs: Outputs, counts: bool) -> None:
        before = {tp: self.assignment.offsets.get(tp, -1) for tp in offsets}
        wanted = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in offsets.items()]
        requested_at = self._clock()
        outcome, reason = Outcome.COMMITTED, ""
        try:
            await self._blocking(self._producer.commit, wanted, self._membership().group_metadata)
            self._side_effects.confirmed(requested_at)
        except TransactionAborted as error:
            if isinstance(error, RecordsRefused) and outputs.refused:  # Kafka works, so continue without a pause
                self._rewind_after_abort(outputs)
                outputs.run_refused(ContentError(str(error)))
                return
            outcome, reason = Outcome.ABORTED, str(error)
        except OutcomeUnknown as error:
            outcome, reason = await self._outcome_from_offsets(before, offsets), str(error)
        if outcome is not Outcome.COMMITTED:
            self._aborted(outputs, reason, outcome)
            return
        self._took_seconds = self._clock() - self._began_at
        if self._took_seconds > _SLOW_TRANSACTION_SECONDS:
            logger.warning("transaction was slow: group=%s seconds=%.1f", self._group, self._took_seconds)
        current = self.assignment
        current.offsets.update((tp, offset) for tp, offset in offsets.items() if tp in current.offsets)
        self._failures = self._aborts = 0
        self._renews_when_assigned = False
        self.limit.committed(self._took_seconds)
        if counts:
            self.committed_at = self._clock()
        if assignment is not current:
            # A later batch has failed in the meantime, and reading again may have started before these offsets.
            self.read_again()
        elif counts:
            current.in_flight -= 1
        outputs.run_committed()
        self.idle.set()
        self.room.set()

    async def _outcome_from_offsets(self, before: Mapping[TP, int], offsets: Mapping[TP, int]) -> Outcome:
        """Return the outcome according to the group's committed offsets, since offsets and outputs are one transaction."""
        found = await self._blocking(self._membership().committed_offsets, list(offsets))
        outcome = Outcome.UNKNOWN if found is None else outcome_of(before, offsets, found)
        logger.warning(
            "transaction outcome read from the committed offsets: group=%s outcome=%s", self._group, outcome.value
        )
        return outcome

    async def _abort(self, outputs: Outputs, reason: str, is_content: bool = False) -> None:
        await self._call_or_exit(self._producer.abort)
        if is_content:  # Kafka works, so continue without a pause
            self._rewind_after_abort(outputs)
        else:
            self._aborted(outputs, reason, Outcome.ABORTED)

    async def _call_or_exit(self, call: Callable[[], None]) -> None:
        """Make a blocking call of the producer. A stop may interrupt it; any other error ends the process."""
        try:
            await self._blocking(call)
        except OutcomeUnknown:
            pass  # the worker stops
        except Exception as error:
            self._end_process(str(error) or repr(error))

    def _aborted(self, outputs: Outputs, reason: str, outcome: Outcome) -> None:
        pause = _ABORT_PAUSES_SECONDS[min(self._aborts, len(_ABORT_PAUSES_SECONDS) - 1)]
        self._aborts += 1
        self.limit.aborted(self._clock() - self._began_at, self._aborts)
        self._not_before = self._clock() + pause
        self._side_effects.doubt()
        logger.warning(
            "transaction aborted: group=%s attempt=%d retry_in_seconds=%.1f reason=%s",
            *(self._group, self._aborts, pause, reason),
        )
        if outcome is Outcome.UNKNOWN:
            # The state may lack committed changes, so no record may be processed with it.
            self._replace(Phase.UNKNOWN, {})
        self._rewind_after_abort(outputs)

    def _rewind_after_abort(self, outputs: Outputs) -> None:
        outputs.run_aborted()
        self.read_again()
        self.idle.set()


class _Guard:
    """See BatchGuard."""

    def __init__(self, committer: Committer, batch: Batch) -> None:
        self._committer = committer
        self._batch = batch

    def raise_if_stale(self) -> None:
        self._committer.raise_if_stale(self._batch)

    async def verify(self) -> None:
        await self._committer.verify(self._batch)
