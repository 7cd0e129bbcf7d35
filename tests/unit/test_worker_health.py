"""Tests of the health of a worker with fake consumers and a fake clock."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from pipeline.kafka import worker_health as module
from pipeline.kafka.worker_health import WorkerHealth
from pipeline.telemetry.health import Health


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Consumer:
    """A consumer with batches in flight, whose broker has `problem`."""

    def __init__(self) -> None:
        self.batches_in_flight = 0
        self.committed_at: float | None = None
        self.problem: str | None = None
        self.asked: list[str] = []

    def unreachable(self, topic: str) -> str | None:
        self.asked.append(topic)
        return self.problem


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


@pytest.fixture
def waits_for_its_destination() -> set[str]:
    return set()


@pytest.fixture
def workers(clock: Clock, waits_for_its_destination: set[str]) -> WorkerHealth:
    health = Health("deliver", 0)
    health.started()
    return WorkerHealth(health, excused=lambda name: name in waits_for_its_destination)


def joined(workers: WorkerHealth, name: str, clock: Clock) -> Consumer:
    consumer = Consumer()
    watched = workers.member(name, f"deliveries-{name}")
    watched.watch.attach(consumer)
    watched.member.rebuilding(1, clock.now)
    watched.member.joined(clock.now)
    return consumer


def lines(workers: WorkerHealth, clock: Clock) -> list[str]:
    return list(workers.health.readiness.verdict(clock.now).lines)


def test_batches_in_flight_without_a_commit_are_a_stall_unless_the_connection_waits_for_its_destination(
    workers: WorkerHealth, clock: Clock, waits_for_its_destination: set[str]
) -> None:
    workers.want(["crm", "files"])
    joined(workers, "files", clock)
    consumer = joined(workers, "crm", clock)
    consumer.batches_in_flight = 2
    for _ in range(31):
        workers._look()
        clock.now += 2
    assert lines(workers, clock) == ["crm: stalled: records wait, but no batch was committed (for 62 s)"]
    consumer.committed_at = clock.now - 1
    workers._look()
    assert lines(workers, clock) == []
    for _ in range(40):
        workers._look()
        clock.now += 2
    assert len(lines(workers, clock)) == 1
    waits_for_its_destination.add("crm")
    workers._look()
    assert lines(workers, clock) == []


def test_kafka_is_checked_through_one_consumer_and_soon_again_after_a_failure(
    workers: WorkerHealth, clock: Clock
) -> None:
    workers.want(["crm", "files"])
    crm, files = joined(workers, "crm", clock), joined(workers, "files", clock)
    assert workers._look() == 2.0
    crm.problem = "no broker responds"
    assert workers._look() == 0.5
    assert workers._look() == 0.5
    assert lines(workers, clock) == ["kafka: away: no broker responds (for 0 s)"]
    assert set(crm.asked) == {"deliveries-crm"} and not files.asked
    crm.problem = None
    workers._look()
    assert lines(workers, clock) == []


def test_a_worker_without_consumers_does_not_check_kafka(workers: WorkerHealth, clock: Clock) -> None:
    consumer = joined(workers, "crm", clock)
    consumer.problem = "no broker responds"
    workers._look()
    workers._look()
    workers.want([])
    workers._look()
    assert lines(workers, clock) == []


def test_a_hanging_call_of_a_poll_thread_fails_liveness_but_a_long_rebalance_does_not(
    workers: WorkerHealth, clock: Clock
) -> None:
    watch = workers.member("crm", "deliveries-crm").watch
    watch.calling_since = clock.now
    liveness = workers.health.liveness
    assert liveness.hangs(clock.now + 50) == []
    assert liveness.hangs(clock.now + 70) == ["crm: hangs: a call of its poll thread has taken 70 s"]
    with watch.rebalance():
        assert liveness.hangs(clock.now + 130) == []
    assert watch.calling_since is not None, "what follows on a rebalance may hang, too"
    assert watch.timed(lambda number: number + 1, 1) == 2 and watch.calling_since is None


def test_the_stack_of_a_hanging_call_is_logged_once(
    workers: WorkerHealth, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    watch = workers.member("crm", "deliveries-crm").watch
    hanging, let_go = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        let_go.wait(30)

    poll_thread = threading.Thread(target=watch.timed, args=(hang,))
    poll_thread.start()
    assert hanging.wait(10)
    watch.calling_since = clock.now
    for _ in range(60):
        clock.now += 2
        workers._look()
    let_go.set()
    poll_thread.join()
    (told,) = [record.getMessage() for record in caplog.records if "hangs" in record.getMessage()]
    assert "member=crm" in told and "let_go.wait(30)" in told
