"""A replacement of Faust's Consumer: one Faust message per batch, one Kafka transaction per message.

Faust still manages agents, their life cycle and rebalances. Its work per event (acks, timed commits, read offsets) is
disabled, because it loses events. Three threads: the loop runs the agents, this class and the committer; the poll thread
runs the Consumer (poller.py); the transactions thread runs the blocking calls of the producer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from faust.types import TP, ConsumerMessage
from mode import Service

from pipeline.errors import ContentError, OutcomeUnknown
from pipeline.kafka.daemon_thread import DaemonThread
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.transport.assignment import Assignment
from pipeline.kafka.transport.batch import Batch, BatchGuard, Outputs
from pipeline.kafka.transport.committer import Committer
from pipeline.kafka.transport.end_process import end_process
from pipeline.kafka.transport.poller import Poller
from pipeline.kafka.transport.quiet import QuietConsumer

if TYPE_CHECKING:
    from pipeline.kafka.transport.driver import Transport

logger = logging.getLogger(__name__)

_BATCHES_IN_FLIGHT = 2  # one commits while the next is prepared
_BUSY_SECONDS = 1.0  # if agents are busy for longer, poll with paused partitions
_COMPLETE_SECONDS = 2.0
"""A stopping worker waits this long for the open transaction; after that, the next instance of the slot aborts it."""


class TransactionalConsumer(QuietConsumer):
    """One member of the consumer group, with its transactional producer."""

    transport: Transport

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.settings = self.transport.settings
        self._poller: Poller | None = None
        self._transactions = DaemonThread(f"transactions-{self.settings.group}")
        self.producer = TransactionalProducer(self.settings.kafka, self.settings.transactional_id)
        self.committer = Committer(
            self.settings.group,
            self.producer,
            self._blocking,
            self._membership,
            end_process,
            lambda: self.should_stop or self.app.should_stop,
            self._assignment_replaced,
            self.settings.batch_records,
        )

    @property
    def committed(self) -> dict[TP, int]:
        """The committed next offset of each assigned partition."""
        return self.committer.assignment.offsets

    async def on_start(self) -> None:
        """Fence the previous instance of this slot and create the poller."""
        self._batches: asyncio.Queue[Batch] = asyncio.Queue()
        self._subscribed = asyncio.Event()
        self.settings.watch.attach(self)
        try:
            await self._blocking(self.producer.initialise)
        except OutcomeUnknown:
            return  # stopped before Kafka responded
        self._poller = Poller(self.settings, self, self.committer)

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group. Faust calls this once its agents run."""
        if self._poller is not None and not self.should_stop:
            await self._poller.subscribe(list(topics))
            self._subscribed.set()

    # Reading ---------------------------------------------------------------------------------------------------

    @Service.task
    async def _pump(self) -> None:
        await self._subscribed.wait()
        assert self._poller is not None
        committer = self.committer
        while not self.should_stop:
            if committer.assignment.in_flight >= _BATCHES_IN_FLIGHT:
                committer.room.clear()
                try:
                    await asyncio.wait_for(committer.room.wait(), _BUSY_SECONDS)
                except TimeoutError:
                    await self._poller.serve()
                continue
            batch = await self._poller.poll()
            if batch is None:
                continue
            if batch.assignment is not committer.assignment:
                committer.assignment.must_rewind = True
                continue
            committer.handed_out()
            self._batches.put_nowait(batch)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Hand the next batch to Faust as one message."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        try:
            batch = await asyncio.wait_for(self._batches.get(), timeout)
        except TimeoutError:
            return
        if self.should_stop or batch.assignment is not self.committer.assignment:
            return
        tp, next_offset = next(iter(batch.next_offsets.items()))
        generation = self.app.consumer_generation_id
        yield (
            tp,
            ConsumerMessage(
                *(tp.topic, tp.partition, next_offset - 1, 0.0, 0, (), None, batch, None, 0, 0, tp),
                generation_id=generation,
            ),
        )

    # Calls by agents -------------------------------------------------------------------------------------------

    def transaction(self, batch: Batch) -> contextlib.AbstractAsyncContextManager[Outputs]:
        """See BatchConsumer."""
        return self.committer.transaction(batch)

    def guard(self, batch: Batch) -> contextlib.AbstractContextManager[BatchGuard]:
        """See BatchConsumer."""
        return self.committer.guard(batch)

    def failed(self, batch: Batch, error: Exception) -> None:
        """See BatchConsumer."""
        self.committer.failed(batch, error)

    def read_smaller(self, batch: Batch, error: ContentError) -> None:
        """See BatchConsumer."""
        self.committer.read_smaller(batch, error)

    def read_again(self, batch: Batch) -> None:
        """See BatchConsumer."""
        if batch.assignment is self.committer.assignment:
            self.committer.read_again()

    # Rebalancing -----------------------------------------------------------------------------------------------

    async def assigned(self, offsets: Mapping[TP, int], install: Callable[[], None]) -> None:
        """Start a new assignment. The poll thread waits in its callback while this runs."""
        self.committer.invalidate()
        await self.committer.idle.wait()
        if not self.app.rebalancing:
            self.app.on_rebalance_start()
        install()
        self.committer.assigned(offsets)
        logger.info(
            "partitions assigned: group=%s partitions=%s", self.settings.group, sorted(tp.partition for tp in offsets)
        )
        await self.on_partitions_assigned(set(offsets), self.committer.assignment.number)

    async def revoked(self, lost: bool) -> None:
        """Commit completed work in the old generation, unless it is `lost`, and release all partitions."""
        await self.committer.leave(0.0 if lost else self.settings.grace_seconds)
        if not self.app.rebalancing:
            self.app.on_rebalance_start()
        await self.on_partitions_revoked(set(self.committed))
        self.settings.listener.revoked()
        self.committer.released()
        if lost:
            logger.info("partitions lost: group=%s", self.settings.group)
        else:
            logger.info("partitions revoked: group=%s", self.settings.group)

    async def outage_ended(self) -> None:
        """See Committer.renew."""
        await self.committer.renew()

    async def settle(self) -> None:
        """Commit completed work before the app stops, and make other batches stale. May be called more than once."""
        await self.committer.leave(self.settings.grace_seconds)

    async def on_stop(self) -> None:
        """Finish the open transaction, then leave the group."""
        try:
            await asyncio.wait_for(self.settle(), self.settings.grace_seconds + _COMPLETE_SECONDS)
        except TimeoutError:
            logger.warning(
                "transaction not finished in time, the next instance will abort it: transactional_id=%s",
                self.producer.transactional_id,
            )
        self.producer.close()
        if self._poller is not None:
            self._poller.stop_waiting()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.committer.idle.wait(), _COMPLETE_SECONDS)
            await self._poller.close()
            logger.info("group left: group=%s", self.settings.group)
        self._transactions.stop()
        self.settings.watch.detach()

    def _membership(self) -> Poller:
        assert self._poller is not None
        return self._poller

    def _assignment_replaced(self, assignment: Assignment) -> None:
        self.app.consumer_generation_id = assignment.number

    def _blocking(self, call: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.wrap_future(self._transactions.submit(call, *arguments))

    # Health --------------------------------------------------------------------------------------------------------

    @property
    def batches_in_flight(self) -> int:
        """See WatchedConsumer."""
        return self.committer.assignment.in_flight

    @property
    def committed_at(self) -> float | None:
        """See WatchedConsumer."""
        return self.committer.committed_at

    def unreachable(self, topic: str) -> str | None:
        """See WatchedConsumer."""
        return self.producer.unreachable(topic)
