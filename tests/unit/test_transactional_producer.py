"""Tests of the slot's producer on a fake librdkafka: hanging calls, fences, replacement and time limits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pipeline.config.models import KafkaConfig
from pipeline.errors import BrokerUnavailable, OutcomeUnknown, RecordTooLarge, TransactionAborted, WorkerMustRestart
from pipeline.kafka import daemon_thread, producer_calls
from pipeline.kafka.daemon_thread import DaemonThread, abandoned_calls
from pipeline.kafka.producer_instance import ProducerInstance
from pipeline.kafka.slot_state import Probe, State
from pipeline.kafka.stuck import LostClient
from pipeline.kafka.transactions import TransactionalProducer

HANG = "hangs"
FENCED = KafkaError(KafkaError._FENCED, "epoch")
FATAL = KafkaError(KafkaError._INCONSISTENT, "broken", fatal=True)
ABORTABLE = KafkaError(KafkaError.ILLEGAL_GENERATION, "generation", txn_requires_abort=True)
RETRIABLE = KafkaError(KafkaError._TIMED_OUT, "time-out", retriable=True)
OFFSETS = [TopicPartition("hits-raw", 0, 5)]


class FakeInstance:
    """One producer. `script` defines the results of its calls by name; without an entry, a call succeeds."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.producer = self
        self.outage_at = float("-inf")
        self.retired: bool | None = None
        self.calls: list[str] = []

    def begin_transaction(self) -> None:
        self._act("begin_transaction")

    def produce(self, *_: Any) -> None:
        self._act("produce")

    def poll(self, timeout: float) -> int:
        return 0

    def _act(self, name: str) -> None:
        self.calls.append(name)
        todo = self.world.script.get(name, [])
        if todo and (error := todo.pop(0)) is not None:
            raise error if isinstance(error, BufferError) else KafkaException(error)

    def call(self, name: str, *_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        todo = self.world.script.get(name, [])
        if todo and todo[0] is HANG:  # KafkaError cannot be compared with a string
            todo.pop(0)
            self.calls.append(name)
            return future
        try:
            self._act(name)
        except KafkaException as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    def serve(self) -> None:
        pass

    def probe(self) -> Probe:
        found = self.world.probes.pop(0) if len(self.world.probes) > 1 else self.world.probes[0]
        if found is Probe.UNREACHABLE:
            self.outage_at = producer_calls.time.monotonic()
        return found

    def retire(self, hangs: bool) -> None:
        self.retired = hangs


class World:
    """The environment of a slot's producers."""

    def __init__(self) -> None:
        self.script: dict[str, list[Any]] = {}
        self.probes: list[Probe] = [Probe.RESPONDS]
        self.instances: list[FakeInstance] = []
        self.producer = TransactionalProducer(KafkaConfig(), "route-0", self._make)  # type: ignore[arg-type]

    def _make(self, properties: dict[str, Any]) -> FakeInstance:
        assert properties["transactional.id"] == "route-0"
        self.instances.append(FakeInstance(self))
        return self.instances[-1]

    def begun(self, **script: list[Any]) -> World:
        """Open a transaction and set the results of later calls."""
        self.producer.initialise()
        self.producer.begin()
        self.script = script
        return self


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_calls, "_TICK_SECONDS", 0.005)
    monkeypatch.setattr(producer_calls, "_SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(producer_calls, "_RETRY_SECONDS", (0.001,))
    monkeypatch.setattr(producer_calls, "_REPLACE_SECONDS", (0.0, 0.001))


def old(world: World) -> World:
    """Make the transaction older than its timeout."""
    calls = world.producer._calls
    calls._began = (calls._began[0] - 3600.0, calls._began[1] - 3600.0)
    return world


def test_a_successful_transaction_needs_one_instance() -> None:
    world = World().begun()
    world.producer.produce("deliveries", b"v")
    world.producer.commit(OFFSETS, object())
    assert world.instances[0].calls == [
        *("init_transactions", "begin_transaction", "produce"),
        *("flush", "send_offsets_to_transaction", "commit_transaction"),
    ]
    assert len(world.instances) == 1


def test_an_instance_that_cannot_reach_kafka_while_a_new_client_can_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.kafka.stuck.STUCK_SECONDS", 0.02)
    world = World()
    world.script = {"init_transactions": [RETRIABLE] * 1000}
    world.probes = [Probe.UNREACHABLE]
    reached: list[bool] = []

    def reaches() -> bool:
        reached.append(len(reached) >= 20)
        return reached[-1]

    def made(properties: dict[str, Any]) -> FakeInstance:
        world.script.clear()
        return world._make(properties)

    world.producer._calls._lost = LostClient(reaches)
    monkeypatch.setattr(world.producer._calls, "_make", lambda: made({"transactional.id": "route-0"}))
    world.producer.initialise()
    assert len(world.instances) == 2 and world.instances[0].retired is False
    assert len(reached) > 20, "while nobody reaches Kafka, it waits"


def test_offsets_are_sent_after_all_records_are_acknowledged() -> None:
    world = World().begun(flush=[RETRIABLE, RETRIABLE])
    world.producer.commit(OFFSETS, object())
    assert world.instances[0].calls[2:] == [
        *("flush", "flush", "flush", "send_offsets_to_transaction", "commit_transaction")
    ]


def test_a_flush_that_hangs_after_an_outage_aborts_without_offsets() -> None:
    world = World().begun(flush=[HANG])
    world.probes = [Probe.UNREACHABLE, Probe.RESPONDS]
    with pytest.raises(TransactionAborted, match="does not return"):
        world.producer.commit(OFFSETS, object())
    assert "send_offsets_to_transaction" not in world.instances[0].calls
    assert len(world.instances) == 2


def test_offsets_that_hang_after_an_outage_replace_the_instance_and_commit_nothing() -> None:
    world = World().begun(send_offsets_to_transaction=[HANG])
    world.probes = [Probe.UNREACHABLE, Probe.RESPONDS]
    with pytest.raises(TransactionAborted, match="does not return"):
        world.producer.commit(OFFSETS, object())
    assert [instance.retired for instance in world.instances] == [True, None]
    assert "commit_transaction" not in world.instances[0].calls
    world.producer.begin()
    world.producer.commit(OFFSETS, object())
    assert world.instances[1].calls[-1] == "commit_transaction"


def test_the_outcome_of_a_hanging_commit_is_unknown() -> None:
    world = World().begun(commit_transaction=[HANG])
    world.probes = [Probe.UNREACHABLE, Probe.RESPONDS]
    with pytest.raises(OutcomeUnknown):
        world.producer.commit(OFFSETS, object())
    assert len(world.instances) == 2 and world.instances[1].calls == ["init_transactions"]
    world.producer.begin()


def test_a_call_to_a_slow_broker_is_awaited() -> None:
    world = World().begun(commit_transaction=[HANG])
    world.probes = [Probe.RESPONDS, Probe.SILENT] * 20 + [Probe.RESPONDS]
    waited = threading.Event()
    done: list[BaseException] = []

    def commit() -> None:
        waited.set()
        try:
            world.producer.commit(OFFSETS, object())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=commit, daemon=True)
    thread.start()
    waited.wait()
    thread.join(0.5)
    assert thread.is_alive() and len(world.instances) == 1
    world.producer.close()
    thread.join(10)
    assert isinstance(done[0], OutcomeUnknown)


def test_a_fence_of_a_young_transaction_names_the_other_process() -> None:
    world = World().begun(send_offsets_to_transaction=[FENCED])
    with pytest.raises(WorkerMustRestart, match=r"another process took over the slot of route-0 .* --slot"):
        world.producer.commit(OFFSETS, object())
    assert len(world.instances) == 1 and world.producer._state is State.FENCED


@pytest.mark.parametrize("call", ["send_offsets_to_transaction", "commit_transaction"])
def test_a_fence_of_an_expired_transaction_means_no_other_process(call: str, caplog: pytest.LogCaptureFixture) -> None:
    world = old(World().begun(**{call: [FENCED]}))
    with pytest.raises((TransactionAborted, OutcomeUnknown)):
        world.producer.commit(OFFSETS, object())
    assert len(world.instances) == 2
    assert "another process" not in caplog.text and "Kafka aborts it after" in caplog.text


def test_a_fence_after_an_outage_means_no_other_process(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that lost the end of its log, such as by a full disk, has an older epoch."""
    world = World().begun(commit_transaction=[HANG, FENCED])
    world.instances[0].outage_at = producer_calls.time.monotonic() + 60.0
    world.script = {"commit_transaction": [FENCED]}
    with pytest.raises(OutcomeUnknown):
        world.producer.commit(OFFSETS, object())
    assert "Kafka was unreachable" in caplog.text


def test_an_abortable_error_keeps_the_instance() -> None:
    world = World().begun(send_offsets_to_transaction=[ABORTABLE])
    with pytest.raises(TransactionAborted):
        world.producer.commit(OFFSETS, object())
    assert len(world.instances) == 1 and world.instances[0].calls[-1] == "abort_transaction"
    world.producer.begin()


def test_an_instance_with_several_consecutive_aborts_is_replaced() -> None:
    world = World().begun(send_offsets_to_transaction=[ABORTABLE] * 4)
    for _ in range(4):
        with pytest.raises(TransactionAborted):
            world.producer.commit(OFFSETS, object())
        world.producer.begin()
    assert len(world.instances) == 2


def test_a_producer_with_an_expired_id_is_replaced_at_once() -> None:
    forgotten = KafkaError(KafkaError.INVALID_PRODUCER_ID_MAPPING, "expired", txn_requires_abort=True)
    world = World().begun(send_offsets_to_transaction=[forgotten])
    with pytest.raises(TransactionAborted):
        world.producer.commit(OFFSETS, object())
    assert len(world.instances) == 2


def test_a_failed_abort_replaces_the_instance() -> None:
    world = World().begun(send_offsets_to_transaction=[ABORTABLE], abort_transaction=[FATAL])
    with pytest.raises(TransactionAborted):
        world.producer.commit(OFFSETS, object())
    assert [instance.retired for instance in world.instances] == [False, None]


def test_a_call_is_repeated_after_a_retriable_error() -> None:
    world = World().begun(commit_transaction=[RETRIABLE, RETRIABLE])
    world.producer.commit(OFFSETS, object())
    assert world.instances[0].calls.count("commit_transaction") == 3


def test_an_abort_replaces_a_producer_that_cannot_begin() -> None:
    world = World()
    world.producer.initialise()
    world.script = {"begin_transaction": [FATAL]}
    with pytest.raises(TransactionAborted):
        world.producer.begin()
    world.producer.abort()
    assert len(world.instances) == 2
    world.producer.begin()


def test_new_instances_are_replaced_until_one_initialises() -> None:
    world = World().begun(commit_transaction=[FATAL])
    world.script["init_transactions"] = [FATAL, RETRIABLE, FATAL]
    with pytest.raises(OutcomeUnknown):
        world.producer.commit(OFFSETS, object())
    assert len(world.instances) == 4
    assert [instance.retired for instance in world.instances] == [False, False, False, None]


def test_an_initialising_instance_is_never_abandoned() -> None:
    """Its request, if sent late, would fence the next instance."""
    world = World()
    world.script = {"init_transactions": [HANG]}
    world.probes = [Probe.UNREACHABLE, Probe.RESPONDS]

    def initialise() -> None:
        with suppress(OutcomeUnknown):
            world.producer.initialise()

    thread = threading.Thread(target=initialise, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and len(world.instances) == 1
    world.producer.close()
    thread.join(10)
    assert not thread.is_alive()


def test_initialising_fails_after_the_time_limit() -> None:
    world = World()
    world.script = {"init_transactions": [RETRIABLE] * 10_000}
    with pytest.raises(BrokerUnavailable, match="did not initialise the producer route-0"):
        world.producer.initialise(patience_seconds=0.05)


def test_a_record_that_cannot_be_sent_raises_to_the_caller() -> None:
    world = World().begun(produce=[KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too large")])
    with pytest.raises(RecordTooLarge, match="deliveries"):
        world.producer.produce("deliveries", b"v")
    world.script["produce"] = [KafkaError(KafkaError._INVALID_ARG, "no")]
    with pytest.raises(KafkaException):
        world.producer.produce("deliveries", b"v")
    world.script["produce"] = [FATAL]
    with pytest.raises(TransactionAborted):
        world.producer.produce("deliveries", b"v")


def test_aborts_for_records_that_are_too_large_keep_the_instance() -> None:
    """Other consecutive aborts replace the instance; here the records are the cause."""
    world = World().begun()
    for _ in range(10):
        world.script["produce"] = [KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too large")]
        with pytest.raises(RecordTooLarge):
            world.producer.produce("deliveries", b"v")
        world.producer.abort()
        world.producer.begin()
    assert len(world.instances) == 1


def test_a_queue_that_stays_full_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.kafka.transactions._FULL_QUEUE_SECONDS", 0.0)
    world = World().begun(produce=[BufferError()] * 3)
    with pytest.raises(TransactionAborted, match="stays full"):
        world.producer.produce("deliveries", b"v")


def test_a_renewed_instance_runs_the_next_transaction() -> None:
    world = World()
    world.producer.initialise()
    world.producer.renew()
    world.producer.begin()
    world.producer.commit(OFFSETS, object())
    assert [instance.retired for instance in world.instances] == [False, None]
    assert world.instances[1].calls == [
        *("init_transactions", "begin_transaction"),
        *("flush", "send_offsets_to_transaction", "commit_transaction"),
    ]


def test_a_producer_without_a_renewal_permit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = threading.BoundedSemaphore(1)
    busy.acquire()
    monkeypatch.setattr(producer_calls, "_RENEWING", busy)
    monkeypatch.setattr(producer_calls, "_RENEWAL_SECONDS", 0.01)
    world = World()
    world.producer.initialise()
    world.producer.renew()
    world.producer.begin()
    world.producer.commit(OFFSETS, object())
    assert len(world.instances) == 1


def test_consecutive_renewals_without_transactions_do_not_slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer_calls, "_REPLACE_SECONDS", (0.0, 60.0))
    world = World()
    world.producer.initialise()
    for _ in range(3):
        world.producer.renew()
    assert len(world.instances) == 4


def test_abandoned_calls_are_bounded(monkeypatch: pytest.MonkeyPatch, hanging: Callable[[], ProducerInstance]) -> None:
    monkeypatch.setattr(producer_calls, "ABANDONED_MOST", 2)
    for _ in range(2):
        hanging().retire(hangs=True)
    world = World().begun(commit_transaction=[FATAL])
    with pytest.raises(OutcomeUnknown):
        world.producer.commit(OFFSETS, object())
    hanging().retire(hangs=True)
    world.producer.begin()
    world.script = {"commit_transaction": [FATAL]}
    with pytest.raises(WorkerMustRestart, match="3 producers hang"):
        world.producer.commit(OFFSETS, object())


def test_a_call_that_returns_late_is_no_longer_counted(hanging: Callable[[], ProducerInstance]) -> None:
    instance = hanging()
    instance.retire(hangs=True)
    assert abandoned_calls() == 1
    instance.let_go.set()  # type: ignore[attr-defined]
    instance._thread._thread.join(10)
    assert abandoned_calls() == 0


@pytest.fixture
def hanging() -> Iterator[Callable[[], ProducerInstance]]:
    """Makes instances in a call that returns only after the test."""
    let_go = threading.Event()

    def make() -> ProducerInstance:
        instance = ProducerInstance({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
        instance.let_go = let_go  # type: ignore[attr-defined]
        instance._thread.submit(let_go.wait, 60)
        return instance

    yield make
    let_go.set()
    for _, thread in list(daemon_thread._abandoned):
        thread._thread.join(10)
    assert abandoned_calls() == 0


def test_a_thread_with_a_hanging_call_does_not_block_the_exit_of_the_process() -> None:
    import subprocess
    import sys

    code = (
        "import threading\nfrom pipeline.kafka.daemon_thread import DaemonThread\n"
        "DaemonThread('t').submit(threading.Event().wait)\nprint('end', flush=True)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert ended.stdout == b"end\n"


def test_calls_of_a_daemon_thread_run_in_order_and_raise_to_the_caller() -> None:
    thread, done = DaemonThread("t"), []
    futures = [thread.submit(done.append, number) for number in range(100)]
    failing = thread.submit(int, "x")
    thread.stop()
    assert [future.result(10) for future in futures] == [None] * 100 and done == list(range(100))
    assert isinstance(failing.exception(10), ValueError)
