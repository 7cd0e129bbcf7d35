"""Faust's Consumer, replaced: one Faust message per batch, one Kafka transaction per message.

Faust keeps what it is good at (agents, life cycle, rebalance bookkeeping, tests); what it does per event (acks,
timed commits, read offsets) is switched off, because it loses events. Thread map: the loop runs agents and this
class, the poll thread the Consumer (poller.py), the transactions thread the blocking calls of the producer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from confluent_kafka import TopicPartition
from faust.types import TP, ConsumerMessage
from mode import Service

from pipeline.errors import StaleBatch, TransactionAborted, WorkerMustRestart
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.transport.batch import FAILURES_IN_A_ROW, Batch, Outputs
from pipeline.kafka.transport.poller import Poller, end_process
from pipeline.kafka.transport.quiet import QuietConsumer

if TYPE_CHECKING:
    from pipeline.kafka.transport.driver import Transport

logger = logging.getLogger("hitrouter.kafka.consumer")

_BATCHES_IN_FLIGHT = 2  # one commits while the next is prepared
_ABORTS_IN_A_ROW = 20
_PROBE_SECONDS = 2.0
_PROBES = 2  # a commit that Kafka works on takes milliseconds
_FIRST_PROBES = 10  # a coordinator that has just come back may take its time to end what a former life left open
_BUSY_SECONDS = 1.0  # agents busy for longer: go on polling with the partitions paused


class TransactionalConsumer(QuietConsumer):
    """One member of the consumer group together with its transactional producer."""

    transport: Transport

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.settings = self.transport.settings
        self.epoch = 0
        """Raised at each assign, revoke and abort; a batch of an older epoch is dropped."""
        self.rewind = False
        """The poll thread must go back to `committed` before it reads on."""
        self._in_flight = 0
        self._failures = self._aborts = 0
        self._poller: Poller | None = None

    async def on_start(self) -> None:
        """Fence the former life of this seat, then get ready to join."""
        self._batches: asyncio.Queue[Batch] = asyncio.Queue()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._subscribed = asyncio.Event()
        self._transactions = ThreadPoolExecutor(1, f"transactions-{self.settings.group}")
        self.producer = TransactionalProducer(self.settings.kafka, self.settings.seat)
        await self._decided(self._blocking(self.producer.initialise), _FIRST_PROBES)
        self._poller = Poller(self.settings, self)

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group; called by Faust once its agents run."""
        assert self._poller is not None
        await self._poller.subscribe(list(topics))
        self._subscribed.set()

    # Reading ---------------------------------------------------------------------------------------------------

    @Service.task
    async def _pump(self) -> None:
        await self._subscribed.wait()
        assert self._poller is not None
        while not self.should_stop:
            if self._in_flight >= _BATCHES_IN_FLIGHT:
                self._room.clear()
                try:
                    await asyncio.wait_for(self._room.wait(), _BUSY_SECONDS)
                except TimeoutError:
                    await self._poller.serve()
                continue
            batch = await self._poller.poll()
            if batch is None:
                continue
            if batch.epoch != self.epoch:
                self.rewind = True
                continue
            self._in_flight += 1
            self._batches.put_nowait(batch)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Hand the next batch to Faust as one message."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        try:
            batch = await asyncio.wait_for(self._batches.get(), timeout)
        except TimeoutError:
            return
        if self.should_stop or batch.epoch != self.epoch:
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

    # Transactions ----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def transaction(self, batch: Batch) -> AsyncIterator[Outputs]:
        """Open the transaction of `batch`; leaving the block commits it behind the caller's back.

        Preparing the next batch overlaps with that commit. Raises StaleBatch when the batch must be forgotten.
        """
        await self._idle.wait()
        if batch.epoch != self.epoch:
            raise StaleBatch(f"epoch {batch.epoch} is over, now {self.epoch}")
        self._idle.clear()
        outputs = Outputs(self.producer)
        try:
            self.producer.begin()
            yield outputs
        except WorkerMustRestart as error:
            end_process(str(error))
        except TransactionAborted as error:
            await self._abort(outputs, str(error))
            raise StaleBatch(str(error)) from error
        except BaseException as error:
            await self._abort(outputs, repr(error))
            raise
        self.add_future(self._commit_transaction(batch, outputs))

    def failed(self, batch: Batch, error: Exception) -> None:
        """An agent could not process `batch`, which is a bug: read it again, and end the process at the third time."""
        self._failures += 1
        logger.error("a batch failed for the %s. time", self._failures, exc_info=error)
        if self._failures >= FAILURES_IN_A_ROW:
            where = ", ".join(f"{tp.topic}-{tp.partition} below {offset}" for tp, offset in batch.next_offsets.items())
            end_process(f"the same failure {self._failures} times at {where}: {error!r}")
        if batch.epoch == self.epoch:
            self._start_again()

    async def _commit_transaction(self, batch: Batch, outputs: Outputs) -> None:
        assert self._poller is not None
        offsets = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in batch.next_offsets.items()]
        try:
            await self._decided(self._blocking(self.producer.commit, offsets, self._poller.group_metadata))
        except TransactionAborted as error:
            self._aborted(outputs, str(error))
            return
        except BaseException as error:
            end_process(str(error) or repr(error))
        self.committed.update((tp, offset) for tp, offset in batch.next_offsets.items() if tp in self.committed)
        for action in outputs.committed:
            action()
        self._failures = self._aborts = 0
        if batch.epoch == self.epoch:
            self._in_flight -= 1
        self._idle.set()
        self._room.set()

    async def _abort(self, outputs: Outputs, reason: str) -> None:
        try:
            await self._decided(self._blocking(self.producer.abort))
        except BaseException as error:
            end_process(str(error) or repr(error))
        self._aborted(outputs, reason)

    def _aborted(self, outputs: Outputs, reason: str) -> None:
        logger.warning("transaction aborted: %s", reason)
        for action in outputs.aborted:
            action()
        self._aborts += 1
        if self._aborts >= _ABORTS_IN_A_ROW:
            end_process(f"{self._aborts} transactions in a row were aborted, the last by {reason}")
        self._start_again()
        self._idle.set()

    def _start_again(self) -> None:
        self._next_epoch()
        self.rewind = True
        self.app.consumer_generation_id = self.epoch

    def _next_epoch(self) -> None:
        self.epoch += 1
        self._in_flight = 0
        self._room.set()

    async def _decided(self, call: asyncio.Future[None], probes: int = _PROBES) -> None:
        """Wait for a blocking call of the producer, and end the process when it hangs although Kafka answers.

        After a broker was lost `send_offsets_to_transaction` may sleep for ever, whatever its time-out says (librdkafka issues 5456
        and 5511; seen here with 2.16: the retried AddOffsetsToTxn succeeds, and nothing follows). The transaction is still
        open then, and our successor on this seat aborts it.
        """
        answered = 0
        while not (await asyncio.wait([call], timeout=_PROBE_SECONDS))[0]:
            answered = answered + 1 if await asyncio.to_thread(self.producer.reaches_kafka) else 0
            logger.warning("a transaction of %s is not decided; Kafka answers: %s", self.settings.seat, bool(answered))
            if answered > probes:
                end_process(f"a transaction of {self.settings.seat} hangs although Kafka answers")
        await call

    def _blocking(self, call: Callable[..., None], *arguments: Any) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._transactions, call, *arguments)

    # Rebalancing -----------------------------------------------------------------------------------------------

    async def assigned(self, offsets: Mapping[TP, int], install: Callable[[], None]) -> None:
        """The poll thread waits in its callback while this runs."""
        self._next_epoch()
        await self._idle.wait()
        if not self.app.rebalancing:
            self.app.on_rebalance_start()
        install()
        self.committed = dict(offsets)
        self.rewind = False
        self.app.consumer_generation_id = self.epoch
        logger.info("assigned %s of %s", sorted(tp.partition for tp in offsets), self.settings.group)
        await self.on_partitions_assigned(set(offsets), self.epoch)

    async def revoked(self) -> None:
        """Nothing new starts for the old assignment; what is open is finished in the old generation."""
        self._next_epoch()
        if not self.app.rebalancing:
            self.app.on_rebalance_start()
        await self._idle.wait()
        await self.on_partitions_revoked(set(self.committed))
        self.settings.listener.revoked()
        self.committed = {}
        logger.info("revoked: all partitions of %s", self.settings.group)

    async def on_stop(self) -> None:
        """Finish the transaction at work, then leave."""
        if self._poller is None:
            return
        self._next_epoch()
        await self._idle.wait()
        await self._poller.close()
        self._transactions.shutdown(wait=False)
        logger.info("left %s", self.settings.group)
