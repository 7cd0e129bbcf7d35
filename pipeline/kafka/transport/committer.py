"""Runs the transactions of one consumer: one at a time, each completed before the next, and none across assignments.

Runs on the loop. Each assignment, revocation and abort starts a new epoch, and a batch of an older epoch is dropped.
`docs/how-it-works.md` describes the rules; tests/unit/test_committer.py checks them with random sequences of events.
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
from pipeline.kafka.transport.batch import FAILURES_IN_A_ROW, Batch, BatchGuard, Outputs
from pipeline.kafka.transport.batch_limit import BatchLimit
from pipeline.kafka.transport.protocols import Membership, SlotProducer

logger = logging.getLogger(__name__)

VERIFY_AFTER_SECONDS = 10.0
"""After a pause of this length, side effects wait until Kafka has confirmed the slot and the group membership."""
_SLOW_COMMIT_SECONDS = 0.25
_SLOW_TRANSACTION_SECONDS = 5.0
_ABORT_PAUSES_SECONDS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Committer:
    """Opens, commits and aborts transactions for batches of the current epoch."""

    def __init__(
        self,
        group: str,
        producer: SlotProducer,
        blocking: Callable[..., Awaitable[Any]],
        membership: Callable[[], Membership],
        end_process: Callable[[str], NoReturn],
        is_stopping: Callable[[], bool],
        epoch_changed: Callable[[int], None] = lambda epoch: None,
        batch_records: int = 2000,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.epoch = 0
        self.rewind = False
        """The poll thread must seek to `committed` before its next read."""
        self.must_rejoin = False
        """The state may be wrong: the poll thread must leave and rejoin the group, which rebuilds the state."""
        self.committed: dict[TP, int] = {}
        """The committed next offset of each assigned partition."""
        self.limit = BatchLimit(batch_records)
        """Limits the records of the next batch."""
        self.in_flight = 0
        """Number of batches of this epoch in flight: handed to the agent and not committed."""
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
        self._epoch_changed = epoch_changed
        self._clock = clock
        self._sleep = sleep
        self._failures = self._aborts = 0
        self._not_before = 0.0
        self._began_at = self._took_seconds = 0.0
        self._proven_from = self._proven_at = clock()
        self._verifying = asyncio.Lock()
        self._guarded = 0
        self._unguarded = asyncio.Event()
        self._unguarded.set()
        self._leave_until: float | None = None
        self._renews_when_assigned = False
        self._task: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None

    # Epochs ----------------------------------------------------------------------------------------------------------

    def next_epoch(self) -> None:
        """Make all batches in flight stale."""
        self.epoch += 1
        self.in_flight = 0
        self.room.set()
        self._epoch_changed(self.epoch)

    def handed_out(self) -> None:
        """Record that a batch of this epoch is handed to the agent."""
        self.in_flight += 1

    async def leave(self, grace_seconds: float) -> None:
        """Wait up to `grace_seconds` for side effects in flight to end and commit, then start a new epoch.

        Afterwards no batch of the old epoch can commit, and no transaction is open.
        """
        if self._leave_until is None:
            self._leave_until = self._clock() + grace_seconds
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._unguarded.wait(), max(0.0, self._leave_until - self._clock()))
        self.next_epoch()
        await self.idle.wait()

    def assigned(self, offsets: Mapping[TP, int]) -> None:
        """Start a new assignment. No transaction may be open."""
        self.next_epoch()
        self.committed = dict(offsets)
        self.rewind = self.must_rejoin = False
        self._leave_until = None
        if offsets and self._renews_when_assigned:
            self._renewal = asyncio.create_task(self._renew())

    def dropped(self) -> None:
        """Record that no partition is assigned."""
        self.committed = {}

    def raise_if_stale(self, batch: Batch) -> None:
        """Raise StaleBatch if no more work may be started for `batch`."""
        if batch.epoch != self.epoch:
            raise StaleBatch(f"epoch {batch.epoch} is over, now {self.epoch}")
        if self._leave_until is not None or self._is_stopping():
            raise StaleBatch("the partitions of this batch are being released")

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
        self._guarded += 1
        self._unguarded.clear()
        try:
            yield _Guard(self, batch)
        finally:
            self._guarded -= 1
            if not self._guarded:
                self._unguarded.set()

    async def verify(self, batch: Batch) -> None:
        """Return once Kafka has confirmed the slot and the group membership. Raises StaleBatch.

        Commits the current offsets again in a transaction: the transaction coordinator checks the producer, and the group
        coordinator checks the member and its generation (KIP-447). An empty transaction would contact neither.
        """
        if not self._is_doubtful:
            return
        async with self._verifying:
            while self._is_doubtful:
                self.raise_if_stale(batch)
                positions: dict[TP, int] = {}
                decided = asyncio.Event()
                async with self._transaction(batch.epoch, positions, counts=False) as outputs:
                    # Read the offsets only now: the previous batch may have been committed while this waited.
                    positions.update((tp, self.committed[tp]) for tp in batch.next_offsets)
                    outputs.after_commit(decided.set)
                    outputs.after_abort(decided.set)
                await decided.wait()
        self.raise_if_stale(batch)

    @property
    def _is_doubtful(self) -> bool:
        quiet = self._clock() - self._proven_at > VERIFY_AFTER_SECONDS
        return quiet or self._membership().suspended_at > self._proven_from

    # Transactions ----------------------------------------------------------------------------------------------------

    def transaction(self, batch: Batch) -> contextlib.AbstractAsyncContextManager[Outputs]:
        """Open the transaction of `batch`. The end of the block starts the commit, which runs in the background.

        The next batch can be prepared during that commit. Raises StaleBatch if the batch must be dropped.
        """
        return self._transaction(batch.epoch, batch.next_offsets, counts=True)

    @contextlib.asynccontextmanager
    async def _transaction(self, epoch: int, offsets: Mapping[TP, int], counts: bool) -> AsyncIterator[Outputs]:
        while not self.idle.is_set():
            await self.idle.wait()
        if (pause := self._not_before - self._clock()) > 0 and epoch == self.epoch:
            await self._sleep(pause)
        while not self.idle.is_set():
            await self.idle.wait()
        if epoch != self.epoch:
            raise StaleBatch(f"epoch {epoch} is over, now {self.epoch}")
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
        self._task = asyncio.create_task(self._commit(epoch, offsets, outputs, counts))

    async def renew(self) -> None:
        """Renew the producer after an outage of all brokers, unless a transaction is open; that one detects a lost producer.

        A producer may hang in its first call after an outage, and the next hit would wait until this is detected. A new
        producer fences any other process with this slot. A worker that has no partitions, or was suspended past its session
        timeout, may have lost its slot to another process. So it renews its producer with its next assignment.
        """
        if not self.committed or self._membership().suspended_at > self._proven_from:
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
        logger.error("batch failed: attempt=%d of %d", self._failures, FAILURES_IN_A_ROW, exc_info=error)
        if self._failures >= FAILURES_IN_A_ROW:
            where = ", ".join(f"{tp.topic}-{tp.partition} below {offset}" for tp, offset in batch.next_offsets.items())
            self._end_process(f"{self._failures} consecutive failures at {where}: {error!r}")
        if batch.epoch == self.epoch:
            self.read_again()

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """Read the records of `batch` again, in batches of half its size."""
        logger.warning(
            "batch failed because of its content: group=%s records=%d reason=%s", self._group, len(batch), error
        )
        self.limit.content_failed(len(batch))
        if batch.epoch == self.epoch:
            self.read_again()

    def read_again(self) -> None:
        """Make batches in flight stale and read again from the committed offsets."""
        self.next_epoch()
        self.rewind = True

    async def _commit(self, epoch: int, offsets: Mapping[TP, int], outputs: Outputs, counts: bool) -> None:
        try:
            await self._complete(epoch, offsets, outputs, counts)
        except Exception as error:
            # A fence or a bug: the state in memory may differ from Kafka from here on.
            self._end_process(str(error) or repr(error))

    async def _complete(self, epoch: int, offsets: Mapping[TP, int], outputs: Outputs, counts: bool) -> None:
        before = {tp: self.committed.get(tp, -1) for tp in offsets}
        wanted = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in offsets.items()]
        proven_from = self._clock()
        outcome, reason = Outcome.COMMITTED, ""
        try:
            await self._blocking(self._producer.commit, wanted, self._membership().group_metadata)
            self._proven_from, self._proven_at = proven_from, self._clock()
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
        self.committed.update((tp, offset) for tp, offset in offsets.items() if tp in self.committed)
        self._failures = self._aborts = 0
        self._renews_when_assigned = False
        self.limit.committed(self._took_seconds)
        if counts:
            self.committed_at = self._clock()
        if epoch != self.epoch:
            # A later batch has failed in the meantime, and reading again may have started before these offsets.
            self.read_again()
        elif counts:
            self.in_flight -= 1
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
        self._proven_at = float("-inf")  # whatever the reason, the next commit may fail, too
        logger.warning(
            "transaction aborted: group=%s attempt=%d retry_in_seconds=%.1f reason=%s",
            *(self._group, self._aborts, pause, reason),
        )
        if outcome is Outcome.UNKNOWN:
            # The state may lack committed changes, so no record may be processed with it.
            self.committed = {}
            self.must_rejoin = True
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
