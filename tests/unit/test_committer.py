"""Tests of the committer with random sequences of assignments, revocations, lost sessions, aborts, unknown outcomes and stops.

The model is one partition of Kafka. Whatever happens, each record's output becomes visible once and in order, and the memory of
this worker holds exactly what is visible.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, NoReturn

import pytest
from confluent_kafka import Message, TopicPartition
from faust.types import TP
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.errors import ContentError, OutcomeUnknown, StaleBatch, TransactionAborted
from pipeline.kafka.slot_state import IllegalTransition
from pipeline.kafka.transport.assignment import LEGAL, Assignment, Phase
from pipeline.kafka.transport.batch import Batch
from pipeline.kafka.transport.committer import Committer
from pipeline.kafka.transport.side_effects import VERIFY_AFTER_SECONDS

pytestmark = pytest.mark.anyio
TP0 = TP("hits-raw", 0)
FATES = ["committed", "aborted", "unknown, committed", "unknown, aborted"]


class FakeKafka:
    """`visible` holds the outputs in the order of their commits, `offset` the group's committed offset."""

    def __init__(self) -> None:
        self.visible: list[int] = []
        self.offset = 0
        self.generation = 0

    def commit(self, outputs: Sequence[int], offset: int) -> None:
        """Apply both, atomically."""
        self.visible += outputs
        self.offset = offset


class FakeSlot:
    """Producer and poll thread of the worker. Each blocking call waits until the test completes it."""

    def __init__(self, kafka: FakeKafka) -> None:
        self.kafka = kafka
        self.group_metadata: object = 0
        self.suspended_at = float("-inf")
        self.outputs: list[int] = []
        self.pending: tuple[asyncio.Future[Any], str, tuple[Any, ...]] | None = None
        self.stopped = False

    def begin(self) -> None:
        self.outputs = []

    def produce(self, topic: str, value: bytes | None, *_: Any) -> None:
        self.outputs.append(int(value or b""))

    def produce_all(self, *_: Any) -> None:
        raise NotImplementedError

    def commit(self, offsets: Sequence[TopicPartition], group_metadata: object) -> None:
        """Called by name in `blocking`."""

    def abort(self) -> None:
        """Called by name in `blocking`."""

    def renew(self) -> None:
        """Called by name in `blocking`."""

    def committed_offsets(self, partitions: Sequence[TP]) -> Mapping[TP, int] | None:
        return None if self.stopped else {TP0: self.kafka.offset}

    def blocking(self, call: Any, *arguments: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if call.__name__ == "committed_offsets":
            future.set_result(call(*arguments))
        else:
            assert self.pending is None, "two blocking calls at once"
            self.pending = (future, call.__name__, arguments)
        return future

    def decide(self, fate: str) -> None:
        """Run the pending call."""
        assert self.pending is not None
        future, name, arguments = self.pending
        self.pending = None
        if name == "renew" and fate.startswith("unknown"):
            self.stopped = True
            future.set_exception(OutcomeUnknown(fate))
            return
        if name in ("abort", "renew"):
            future.set_result(None)
            return
        offsets, generation = arguments
        if generation != self.kafka.generation and "aborted" not in fate:
            fate = "aborted"  # KIP-447: the group coordinator refuses the old generation
        if "aborted" not in fate:
            self.kafka.commit(self.outputs, offsets[0].offset)
        if fate.startswith("unknown"):
            future.set_exception(OutcomeUnknown(fate))
        elif fate == "aborted":
            future.set_exception(TransactionAborted(fate))
        else:
            future.set_result(None)


def never(reason: str) -> NoReturn:
    raise AssertionError(f"the process was ended: {reason}")


class Worker:
    """The committer with an agent, a state in memory and the rebalance steps of consumer and poller."""

    def __init__(self, kafka: FakeKafka) -> None:
        self.kafka = kafka
        self.slot = FakeSlot(kafka)
        self.now = 100.0
        self.committer = Committer(
            "group",
            self.slot,
            self.slot.blocking,
            lambda: self.slot,
            never,
            lambda: self.slot.stopped,
            clock=lambda: self.now,
            sleep=self._sleep,
        )
        self.memory: set[int] = set()
        self.position: int | None = None
        self.queue: asyncio.Queue[Batch] = asyncio.Queue()
        self.told: list[str] = []
        self.faults: set[int] = set()
        """Offsets whose content makes a batch fail, unless they are alone."""
        self.fails_early = False
        """The batch fails before its transaction, such as during its preparation."""
        self.agent = asyncio.ensure_future(self._agent())

    @property
    def must_rejoin(self) -> bool:
        return self.committer.assignment.phase is Phase.UNKNOWN

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    def poll(self, count: int) -> None:
        """Do the work of the pump and the poll thread."""
        assignment = self.committer.assignment
        if self.position is None or assignment.phase is Phase.UNKNOWN or assignment.in_flight >= 2:
            return
        if assignment.must_rewind:
            assignment.must_rewind = False
            if TP0 not in assignment.offsets:
                return
            self.position = assignment.offsets[TP0]
        count = min(count, self.committer.limit.records or count)
        records = [Message(topic=TP0.topic, partition=0, offset=self.position + n, value=b"v") for n in range(count)]
        batch = Batch.of(assignment, {TP0: records})
        assert batch is not None
        self.position += count
        self.committer.handed_out()
        self.queue.put_nowait(batch)

    async def _agent(self) -> None:
        while True:
            batch = await self.queue.get()
            numbers = [record.offset() or 0 for record in batch.records[TP0]]
            fails = len(batch) > 1 and bool(self.faults & set(numbers))
            try:
                if fails and self.fails_early:
                    raise ContentError("early")
                async with self.committer.transaction(batch) as outputs:
                    if fails:
                        raise ContentError("late")
                    assert not self.memory & set(numbers), "a record is processed although its output is visible"
                    for number in numbers:
                        outputs.produce("deliveries", b"%d" % number)
                    outputs.after_commit(lambda numbers=numbers: self._told("committed", numbers))  # type: ignore[misc]
                    outputs.after_abort(lambda numbers=numbers: self._told("aborted", numbers))  # type: ignore[misc]
            except StaleBatch:
                pass
            except ContentError as error:
                self.committer.read_smaller(batch, error)

    def _told(self, what: str, numbers: Sequence[int]) -> None:
        self.told.append(what)
        if what == "committed" and self.position is not None:
            self.memory |= set(numbers)

    async def revoked(self, lost: bool) -> None:
        """Do the same as TransactionalConsumer.revoked."""
        await self.committer.leave(0.0 if lost else 1.0)
        self.committer.released()
        self.memory, self.position = set(), None

    async def assigned(self) -> None:
        """Do the same as the poller's callback and TransactionalConsumer.assigned."""
        self.slot.group_metadata = self.kafka.generation
        offset = self.kafka.offset
        memory = set(self.kafka.visible)
        self.committer.invalidate()
        await self.committer.idle.wait()
        self.memory, self.position = memory, offset
        self.committer.assigned({TP0: offset})


class CommitterMachine(RuleBasedStateMachine):
    """One worker, and other workers that get its partition while it is not assigned to this one."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.kafka = FakeKafka()
        self.rebalance: asyncio.Future[None] | None = None
        self.stops: list[asyncio.Future[None]] = []
        self.step = "assigned"
        self.worker: Worker = self._run(self._worker())
        self._run(self.worker.assigned())

    async def _worker(self) -> Worker:
        return Worker(self.kafka)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        result = self.loop.run_until_complete(work)
        self._settle()
        return result

    def _settle(self) -> None:
        async def turns() -> None:
            for _ in range(30):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        if self.rebalance is not None and self.rebalance.done():
            self.rebalance.result()
            self.rebalance = None
            self.step = {"leaving": "free", "joining": "assigned"}.get(self.step, self.step)

    @precondition(lambda self: self.step == "assigned")
    @rule(count=st.integers(1, 3))
    def poll(self, count: int) -> None:
        self.worker.poll(count)
        self._settle()

    @precondition(lambda self: self.step == "assigned" and self.worker.position is not None)
    @rule(distance=st.integers(0, 4), early=st.booleans())
    def content_is_at_fault(self, distance: int, early: bool) -> None:
        self.worker.faults.add((self.worker.position or 0) + distance)
        self.worker.fails_early = early

    @precondition(lambda self: self.worker.slot.pending is not None)
    @rule(fate=st.sampled_from(FATES))
    def kafka_decides(self, fate: str) -> None:
        self.worker.slot.decide(fate)
        self._settle()

    @precondition(lambda self: self.step == "assigned")
    @rule(lost=st.booleans())
    def partitions_go(self, lost: bool) -> None:
        if lost:
            self.kafka.generation += 1
        self._leave(lost)

    @precondition(lambda self: self.step == "assigned" and self.worker.must_rejoin)
    @rule()
    def rejoin(self) -> None:
        self._leave(lost=True)

    def _leave(self, lost: bool) -> None:
        self.step = "leaving"
        self.rebalance = asyncio.ensure_future(self.worker.revoked(lost), loop=self.loop)
        self._settle()

    @precondition(lambda self: self.step == "free")
    @rule(taken=st.integers(0, 3))
    def partitions_come(self, taken: int) -> None:
        self.kafka.generation += 1
        self.kafka.commit(range(self.kafka.offset, self.kafka.offset + taken), self.kafka.offset + taken)
        self.step = "joining"
        self.rebalance = asyncio.ensure_future(self.worker.assigned(), loop=self.loop)
        self._settle()

    @precondition(lambda self: self.worker.slot.pending is not None and self.step == "assigned")
    @rule(taken=st.integers(1, 3))
    def others_go_on_while_this_worker_sleeps(self, taken: int) -> None:
        self.kafka.generation += 1
        self.kafka.commit(range(self.kafka.offset, self.kafka.offset + taken), self.kafka.offset + taken)

    @precondition(lambda self: not self.worker.slot.stopped)
    @rule()
    def an_outage_ends(self) -> None:
        self.renewal = asyncio.ensure_future(self.worker.committer.renew(), loop=self.loop)
        self._settle()

    @precondition(lambda self: len(self.stops) < 3)
    @rule()
    def the_worker_settles_before_a_stop(self) -> None:
        """Beside any other step, since the pump still polls meanwhile; a stopping app settles twice."""
        self.stops.append(asyncio.ensure_future(self.worker.committer.leave(1.0), loop=self.loop))
        self._settle()

    @rule()
    def time_passes(self) -> None:
        self.worker.now += 3.0

    @invariant()
    def each_output_is_visible_once_and_in_order(self) -> None:
        assert self.kafka.visible == list(range(self.kafka.offset))

    @invariant()
    def the_agent_has_no_complaint(self) -> None:
        if self.worker.agent.done():
            self.worker.agent.result()

    @invariant()
    def no_stop_fails(self) -> None:
        for stop in self.stops:
            if stop.done():
                stop.result()

    @invariant()
    def memory_is_what_kafka_has(self) -> None:
        """A worker of an earlier generation may lag behind, but it cannot commit."""
        mine = self.worker.slot.group_metadata == self.kafka.generation
        if self.step == "assigned" and mine and self.worker.slot.pending is None and not self.worker.must_rejoin:
            assert self.worker.memory == set(self.kafka.visible)

    @invariant()
    def nothing_is_open_while_the_partitions_are_away(self) -> None:
        if self.step == "free":
            assert self.worker.committer.idle.is_set() and self.worker.slot.pending is None

    def teardown(self) -> None:
        if not hasattr(self, "worker"):
            return
        while self.worker.slot.pending is not None:
            self.worker.slot.decide("committed")
            self._settle()
        assert self.worker.committer.idle.is_set(), "a transaction was never settled"
        assert self.rebalance is None, "a rebalance never ends"
        assert all(stop.done() for stop in self.stops), "a stop never ends"
        self.worker.agent.cancel()
        self._settle()
        self.loop.close()


CommitterMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestCommitter = CommitterMachine.TestCase


async def started() -> Worker:
    worker = Worker(FakeKafka())
    await worker.assigned()
    return worker


async def turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def batch_of(worker: Worker) -> Batch:
    batch = Batch.of(worker.committer.assignment, {TP0: [Message(topic=TP0.topic, partition=0, offset=0, value=b"v")]})
    assert batch is not None
    return batch


async def test_side_effects_after_a_pause_wait_until_kafka_has_confirmed_the_slot() -> None:
    worker = await started()
    with worker.committer.guard(batch_of(worker)) as guard:
        await asyncio.wait_for(guard.verify(), 5)  # fresh: Kafka is not asked
        worker.now += VERIFY_AFTER_SECONDS + 1
        verifying = [asyncio.ensure_future(guard.verify()) for _ in range(3)]
        await turns()
        assert not any(task.done() for task in verifying)
        worker.slot.decide("committed")
        await asyncio.wait_for(asyncio.gather(*verifying), 5)
        assert worker.slot.pending is None  # one proof serves all
        assert worker.kafka.offset == 0 and worker.kafka.visible == []


async def test_a_worker_suspended_past_its_session_sends_nothing() -> None:
    worker = await started()
    with worker.committer.guard(batch_of(worker)) as guard:
        worker.slot.suspended_at = worker.now + 1.0
        worker.kafka.generation += 1
        verifying = asyncio.ensure_future(guard.verify())
        await turns()
        worker.slot.decide("committed")
        with pytest.raises(StaleBatch):
            await asyncio.wait_for(verifying, 5)


async def test_after_an_abort_nothing_is_sent_before_kafka_has_confirmed_the_slot() -> None:
    worker = await started()
    worker.poll(1)
    await turns()
    worker.slot.decide("aborted")
    await turns()
    with worker.committer.guard(batch_of(worker)) as guard:
        verifying = asyncio.ensure_future(guard.verify())
        await turns()
        assert not verifying.done()
        worker.slot.decide("committed")
        await asyncio.wait_for(verifying, 5)


async def test_a_verification_never_moves_the_committed_offsets_back() -> None:
    """With a slow sink, the previous batch is committed while the verification of the next one waits."""
    worker = await started()
    worker.now += VERIFY_AFTER_SECONDS + 1
    worker.poll(3)
    await turns()
    with worker.committer.guard(batch_of(worker)) as guard:
        verifying = asyncio.ensure_future(guard.verify())
        await turns()
        for _ in range(2):
            if worker.slot.pending is not None:
                worker.slot.decide("committed")
            await turns()
        await asyncio.wait_for(verifying, 5)
    assert worker.kafka.offset == 3


async def test_a_worker_without_partitions_fences_no_process_after_an_outage() -> None:
    """Another process may use its slot, and a new producer would fence that process."""
    worker = await started()
    await worker.revoked(lost=True)
    await worker.committer.renew()
    worker.committer.assigned({})
    await turns()
    assert worker.slot.pending is None and worker.committer.idle.is_set()
    await worker.assigned()
    await turns()
    assert worker.slot.pending is not None and worker.slot.pending[1] == "renew", "its own assignment says that it may"
    worker.slot.decide("committed")
    await turns()
    await worker.revoked(lost=False)
    await worker.assigned()
    await turns()
    assert worker.slot.pending is None, "once"


async def test_a_worker_suspended_past_its_session_fences_no_process_after_an_outage() -> None:
    worker = await started()
    worker.slot.suspended_at = worker.now + 1.0
    renewing = asyncio.ensure_future(worker.committer.renew())
    await turns()
    assert worker.slot.pending is None and renewing.done()


async def test_a_producer_that_has_committed_since_the_outage_is_not_renewed() -> None:
    worker = await started()
    worker.slot.suspended_at = worker.now + 1.0
    renewing = asyncio.ensure_future(worker.committer.renew())
    worker.poll(1)
    await turns()
    worker.slot.decide("committed")
    await renewing
    await worker.revoked(lost=False)
    await worker.assigned()
    await turns()
    assert worker.slot.pending is None and worker.kafka.visible == [0]


async def test_a_new_assignment_needs_no_second_one() -> None:
    worker = await started()
    worker.poll(3)
    await turns()
    leaving = asyncio.ensure_future(worker.committer.leave(0.0))
    await turns()
    worker.kafka.offset = 5  # the next owner of the partition has gone on
    worker.slot.decide("unknown, aborted")
    await asyncio.wait_for(leaving, 5)
    assert worker.must_rejoin
    worker.committer.released()
    assert not worker.must_rejoin, "the next assignment rebuilds the state anyway"
    worker.committer.assigned({TP0: 5})
    assert worker.committer.assignment.phase is Phase.READING


async def test_the_poll_thread_never_sees_an_aborted_assignment_without_its_rewind() -> None:
    """Else it could read on behind records that were aborted, and the next commit would skip them."""
    worker = await started()
    seen: list[bool] = []
    worker.committer._replaced = lambda assignment: seen.append(assignment.must_rewind)
    worker.poll(3)
    await turns()
    worker.slot.decide("aborted")
    await turns()
    assert seen and all(seen)


@pytest.mark.parametrize("now", Phase)
@pytest.mark.parametrize("wanted", Phase)
def test_an_assignment_makes_only_legal_transitions(now: Phase, wanted: Phase) -> None:
    assignment = Assignment(7, now, {TP0: 3})
    if wanted in LEGAL[now]:
        following = assignment.replaced(wanted)
        assert following is not assignment and following.number == 8
        assert (following.phase, following.offsets, following.in_flight) == (wanted, {TP0: 3}, 0)
    else:
        with pytest.raises(IllegalTransition):
            assignment.replaced(wanted)


def test_partitions_are_never_released_before_they_are_left() -> None:
    assert {now for now in Phase if Phase.RELEASED in LEGAL[now]} == {Phase.RELEASED, Phase.LEFT, Phase.UNKNOWN}


async def test_a_verification_with_an_unknown_outcome_confirms_nothing() -> None:
    worker = await started()
    worker.now += VERIFY_AFTER_SECONDS + 1
    with worker.committer.guard(batch_of(worker)) as guard:
        verifying = asyncio.ensure_future(guard.verify())
        await turns()
        worker.slot.decide("unknown, committed")
        await turns()
        assert not verifying.done() and worker.slot.pending is not None  # it asks again
        worker.slot.decide("committed")
        await asyncio.wait_for(verifying, 5)


async def test_a_revocation_waits_for_side_effects_and_their_commit() -> None:
    worker = await started()
    batch, ended = batch_of(worker), asyncio.Event()

    async def effects() -> None:
        with worker.committer.guard(batch) as guard:
            await ended.wait()
            with pytest.raises(StaleBatch):
                guard.raise_if_stale()  # nothing new starts
            decided = asyncio.Event()
            async with worker.committer.transaction(batch) as outputs:
                outputs.produce("deliveries", b"0")
                outputs.after_commit(decided.set)
            await decided.wait()

    agent = asyncio.ensure_future(effects())
    await turns()
    leaving = asyncio.ensure_future(worker.committer.leave(60.0))
    await turns()
    ended.set()
    await turns()
    assert not leaving.done()
    worker.slot.decide("committed")
    await asyncio.wait_for(asyncio.gather(agent, leaving), 5)
    assert worker.kafka.offset == 1
    with pytest.raises(StaleBatch), worker.committer.guard(batch):
        raise AssertionError("nothing may start any more")


async def test_a_batch_that_fails_while_another_commits_is_read_again_after_that_one() -> None:
    """Once it was read again from the offsets before that commit, and the ledger counted records twice."""
    worker = await started()
    worker.poll(3)
    await turns()  # its commit is under way
    behind = Batch.of(worker.committer.assignment, {TP0: [Message(topic=TP0.topic, partition=0, offset=3, value=b"v")]})
    assert behind is not None
    worker.committer.failed(behind, ValueError("while it is prepared"))
    worker.poll(4)
    worker.slot.decide("committed")
    await turns()
    assert worker.slot.pending is None, "the batch that was read from the old offsets is stale"
    worker.poll(2)
    await turns()
    worker.slot.decide("committed")
    await turns()
    assert worker.kafka.visible == [0, 1, 2, 3, 4] and not worker.agent.done()


async def test_a_batch_that_fails_because_of_its_content_is_halved_without_a_pause() -> None:
    worker = await started()
    worker.faults = {5}
    began, polls = worker.now, 0
    while worker.kafka.offset < 40:
        polls += 1
        worker.poll(20)
        await turns()
        if worker.slot.pending is not None:
            worker.slot.decide("committed")  # the commit, or the abort
        await turns()
    assert worker.kafka.visible[:20] == list(range(20)) and polls < 20
    assert worker.now == began


async def test_consecutive_aborts_wait_longer_and_do_not_end_the_process() -> None:
    worker = await started()
    began = worker.now
    for _ in range(40):
        worker.poll(1)
        await turns()
        worker.slot.decide("aborted")
        await turns()
    assert worker.kafka.offset == 0 and 100 < worker.now - began < 300
    worker.poll(1)
    await turns()
    worker.slot.decide("committed")
    await turns()
    assert worker.kafka.visible == [0]
