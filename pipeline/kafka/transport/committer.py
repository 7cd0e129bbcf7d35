"""The transactions of one consumer: one at a time, each decided before the next, in step with its assignment.

Runs on the loop. An epoch numbers the assignment and is raised by each assignment, revocation and abort; a batch of an older
epoch is dropped. `docs/how-it-works.md` describes the rules; tests/unit/test_committer.py checks them in random order.
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
"""Side effects after a pause of this length wait until Kafka has confirmed slot and membership."""
_SLOW_COMMIT_SECONDS = 0.25
_LONG_SECONDS = 5.0
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
        """The poll thread must go back to `committed` before it reads on."""
        self.must_rejoin = False
        """The state cannot be trusted: leave the group and join it again, which rebuilds it."""
        self.committed: dict[TP, int] = {}
        """Assigned partitions with the next offset as the last commit left it."""
        self.limit = BatchLimit(batch_records)
        """How many records the next batch may have."""
        self.in_flight = 0
        """Batches of this epoch that were handed out and are not committed."""
        self.committed_at: float | None = None
        """On `clock`: when a batch was committed last."""
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
        """Make every batch that is under way stale."""
        self.epoch += 1
        self.in_flight = 0
        self.room.set()
        self._epoch_changed(self.epoch)

    def handed_out(self) -> None:
        """A batch of this epoch goes to the agent."""
        self.in_flight += 1

    async def leave(self, grace_seconds: float) -> None:
        """Let side effects that are under way end and commit, for `grace_seconds` at most; then give everything up.

        Afterwards no batch of the old epoch can commit, and no transaction is open.
        """
        if self._leave_until is None:
            self._leave_until = self._clock() + grace_seconds
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._unguarded.wait(), max(0.0, self._leave_until - self._clock()))
        self.next_epoch()
        await self.idle.wait()

    def assigned(self, offsets: Mapping[TP, int]) -> None:
        """Take over a new assignment; no transaction is open."""
        self.next_epoch()
        self.committed = dict(offsets)
        self.rewind = self.must_rejoin = False
        self._leave_until = None
        if offsets and self._renews_when_assigned:
            self._renewal = asyncio.create_task(self._renew())

    def dropped(self) -> None:
        """Nothing is assigned any more."""
        self.committed = {}

    def raise_if_stale(self, batch: Batch) -> None:
        """Raise StaleBatch when nothing more may be started for `batch`."""
        if batch.epoch != self.epoch:
            raise StaleBatch(f"epoch {batch.epoch} is over, now {self.epoch}")
        if self._leave_until is not None or self._is_stopping():
            raise StaleBatch("the partitions of this batch are given up")

    @property
    def is_slow(self) -> bool:
        """Says whether a commit under way takes so long that the next batch should grow meanwhile."""
        if self.idle.is_set():
            return False
        return max(self._took_seconds, self._clock() - self._began_at) > _SLOW_COMMIT_SECONDS

    # Side effects ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def guard(self, batch: Batch) -> Iterator[BatchGuard]:
        """Side effects of `batch` are under way; `leave` waits for the end of the block."""
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
        """Return once slot and membership are confirmed; raises StaleBatch.

        The proof is a transaction that commits the current offsets again: the transaction coordinator checks the producer, the
        group coordinator the member and its generation (KIP-447). An empty transaction would contact neither.
        """
        if not self._is_doubtful:
            return
        async with self._verifying:
            while self._is_doubtful:
                self.raise_if_stale(batch)
                positions: dict[TP, int] = {}
                decided = asyncio.Event()
                async with self._transaction(batch.epoch, positions, counts=False) as outputs:
                    # Not before: while this waited for its turn, the batch before this one may have been committed.
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
        """Open the transaction of `batch`; leaving the block commits it in the background.

        Preparing the next batch overlaps with that commit. Raises StaleBatch when the batch must be dropped.
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
        """Take a new producer after an outage of all brokers, unless a transaction is at work, which finds out by itself.

        A producer may hang in its first call after an outage; the next hit would have to wait until that is noticed. A new one
        fences any other process with this slot. A worker without partitions, or one that slept past its session, may have lost
        both to another process, so it renews with its next assignment.
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
        await self._call_or_end(self._producer.renew)
        self.idle.set()

    def failed(self, batch: Batch, error: Exception) -> None:
        """An agent could not process `batch`, which is a bug: read it again, and end the process at the third time."""
        self._failures += 1
        logger.error("batch failed: attempt=%d of %d", self._failures, FAILURES_IN_A_ROW, exc_info=error)
        if self._failures >= FAILURES_IN_A_ROW:
            where = ", ".join(f"{tp.topic}-{tp.partition} below {offset}" for tp, offset in batch.next_offsets.items())
            self._end_process(f"the same failure {self._failures} times at {where}: {error!r}")
        if batch.epoch == self.epoch:
            self.read_again()

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """Read the records of `batch` again, in batches of half its size."""
        logger.warning("batch failed for its content: group=%s records=%d reason=%s", self._group, len(batch), error)
        self.limit.content_failed(len(batch))
        if batch.epoch == self.epoch:
            self.read_again()

    def read_again(self) -> None:
        """Make batches that are under way stale and read from the committed offsets."""
        self.next_epoch()
        self.rewind = True

    async def _commit(self, epoch: int, offsets: Mapping[TP, int], outputs: Outputs, counts: bool) -> None:
        try:
            await self._decide(epoch, offsets, outputs, counts)
        except Exception as error:
            # A fence, or a bug: memory may disagree with Kafka from here on.
            self._end_process(str(error) or repr(error))

    async def _decide(self, epoch: int, offsets: Mapping[TP, int], outputs: Outputs, counts: bool) -> None:
        before = {tp: self.committed.get(tp, -1) for tp in offsets}
        wanted = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in offsets.items()]
        proven_from = self._clock()
        outcome, reason = Outcome.COMMITTED, ""
        try:
            await self._blocking(self._producer.commit, wanted, self._membership().group_metadata)
            self._proven_from, self._proven_at = proven_from, self._clock()
        except TransactionAborted as error:
            if isinstance(error, RecordsRefused) and outputs.refused:  # Kafka is well: go on at once
                self._give_back(outputs)
                outputs.run_refused(ContentError(str(error)))
                return
            outcome, reason = Outcome.ABORTED, str(error)
        except OutcomeUnknown as error:
            outcome, reason = await self._learn(before, offsets), str(error)
        if outcome is not Outcome.COMMITTED:
            self._aborted(outputs, reason, outcome)
            return
        self._took_seconds = self._clock() - self._began_at
        if self._took_seconds > _LONG_SECONDS:
            logger.warning("transaction took long: group=%s seconds=%.1f", self._group, self._took_seconds)
        self.committed.update((tp, offset) for tp, offset in offsets.items() if tp in self.committed)
        self._failures = self._aborts = 0
        self._renews_when_assigned = False
        self.limit.committed(self._took_seconds)
        if counts:
            self.committed_at = self._clock()
        if epoch != self.epoch:
            # A later batch failed meanwhile: what was read again since may begin before these offsets.
            self.read_again()
        elif counts:
            self.in_flight -= 1
        outputs.run_committed()
        self.idle.set()
        self.room.set()

    async def _learn(self, before: Mapping[TP, int], offsets: Mapping[TP, int]) -> Outcome:
        """Offsets and outputs are one transaction, so the group's offsets say what became of it."""
        found = await self._blocking(self._membership().committed_offsets, list(offsets))
        outcome = Outcome.UNKNOWN if found is None else outcome_of(before, offsets, found)
        logger.warning("transaction decided by the committed offsets: group=%s outcome=%s", self._group, outcome.value)
        return outcome

    async def _abort(self, outputs: Outputs, reason: str, is_content: bool = False) -> None:
        await self._call_or_end(self._producer.abort)
        if is_content:  # Kafka is well: go on at once
            self._give_back(outputs)
        else:
            self._aborted(outputs, reason, Outcome.ABORTED)

    async def _call_or_end(self, call: Callable[[], None]) -> None:
        """Make a blocking call of the producer that only a stop may leave undone; another error ends the process."""
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
        self._proven_at = float("-inf")  # whatever the reason: the next commit may fail, too
        logger.warning(
            "transaction aborted: group=%s attempt=%d retry_in_seconds=%.1f reason=%s",
            *(self._group, self._aborts, pause, reason),
        )
        if outcome is Outcome.UNKNOWN:
            # The state may lack what was committed: nothing may be read with it.
            self.committed = {}
            self.must_rejoin = True
        self._give_back(outputs)

    def _give_back(self, outputs: Outputs) -> None:
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
