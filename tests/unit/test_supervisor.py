"""What `up` runs, when it starts a process again, and what it tells; with stand-ins for the processes."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.config.addresses import workers_of
from pipeline.config.models import Config, KafkaConfig
from pipeline.errors import BrokerUnavailable
from pipeline.process.parent import exit_name
from pipeline.supervisor.processes import BrokerProcess, CannotStart, End, RoleProcess
from pipeline.supervisor.restarts import STEADY_SECONDS, advice, after_end
from pipeline.supervisor.run import Child


class Stub:
    """A process whose ends are told beforehand: each start takes the next one."""

    name = "route-0"

    def __init__(self, *ends: End | CannotStart) -> None:
        self.ends: Iterator[End | CannotStart] = iter(ends)
        self.starts = 0
        self.next_end: End | None = None

    def start(self) -> None:
        self.starts += 1
        following = next(self.ends)
        if isinstance(following, CannotStart):
            raise following
        self.next_end = following

    def end(self) -> End | None:
        return self.next_end

    def stop(self) -> None:
        pass


def test_the_intake_has_as_many_processes_as_the_file_says_each_with_its_own_slot() -> None:
    config = Config.model_validate({"intake": {"workers": 3}})
    assert workers_of(config) == [("intake", 0), ("intake", 1), ("intake", 2), ("route", 0), ("deliver", 0)]


def test_the_wait_grows_with_failures_in_a_row_and_is_short_again_after_a_steady_life() -> None:
    failures, waits = 0, []
    for _ in range(9):
        restart = after_end(failures, 1.0)
        failures = restart.failures
        waits.append(restart.wait_seconds)
    assert waits == [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0, 30.0]
    assert after_end(failures, STEADY_SECONDS + 1) == after_end(0, 1.0)


@pytest.mark.parametrize("code", [1, 2, 69, 70, -signal.SIGKILL, -signal.SIGSEGV, 99])
def test_no_exit_code_of_a_role_ends_the_others(code: int, caplog: pytest.LogCaptureFixture) -> None:
    end = End(exit_name(code), "the reason", advice(code, "h.yaml"))
    process = Stub(*[end] * 6)
    child, now = Child(process), 0.0
    with caplog.at_level(logging.WARNING, "hitrouter.up"):
        while process.starts < 6:
            child.watch(now)
            now += 0.1
        child.watch(now)
    ended = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(ended) == 6
    assert all("role=route-0" in line and exit_name(code) in line and "reason=the reason" in line for line in ended)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [f"failures={number}; {advice(code, 'h.yaml')}" in line for number, line in zip((5, 6), told, strict=True)]


def test_the_advice_can_be_pasted() -> None:
    assert "`hitrouter validate -c 'my file.yaml'` and `hitrouter topics -c 'my file.yaml'`" in advice(
        1, "my file.yaml"
    )


def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    process = Stub(CannotStart(End("not started", "Cannot allocate memory", "")), End("exit code 0", "", ""))
    child = Child(process)
    child.watch(0.0)
    assert (process.starts, child.failures, child.started_at) == (1, 1, None)
    child.watch(0.05)
    assert process.starts == 1
    child.watch(0.2)
    assert process.starts == 2 and child.started_at == 0.2


def test_an_interpreter_that_is_gone_is_an_end_not_an_error(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(CannotStart) as caught:
        RoleProcess("route", 0, __file__, {}).start()  # type: ignore[arg-type]
    assert "No such file" in caught.value.end.reason


def test_ends_are_named_as_operators_know_them() -> None:
    assert [exit_name(code) for code in (0, 70, -9, -11)] == ["exit code 0", "exit code 70", "SIGKILL", "SIGSEGV"]
    assert "hitrouter validate -c h.yaml" in advice(1, "h.yaml")
    assert "hitrouter topics -c h.yaml" in advice(1, "h.yaml")
    assert "dmesg" in advice(-9, "h.yaml")


class StubBroker:
    """An EmbeddedBroker that answers once `ready` is set, or has ended once `process` has a `returncode`."""

    def __init__(self) -> None:
        self.process = self
        self.returncode: int | None = None
        self.ready = threading.Event()
        self.returned = threading.Semaphore(0)

    def start(self, wait: bool) -> None:
        self.returncode, self.ready = None, threading.Event()

    def wait_ready(self, timeout_seconds: float, given_up: threading.Event) -> None:
        ready = self.ready
        try:
            while not ready.is_set() and not given_up.is_set():
                if self.returncode is not None:
                    raise BrokerUnavailable("ended")
                time.sleep(0.01)
        finally:
            self.returned.release()

    def poll(self) -> int | None:
        return self.returncode

    def failure(self) -> str:
        return "no reason is logged"

    def close(self) -> None:
        pass

    def stop(self) -> None:
        pass


def test_a_kafka_that_answers_again_is_reported_once_per_restart(caplog: pytest.LogCaptureFixture) -> None:
    process, broker = BrokerProcess(KafkaConfig()), StubBroker()
    process._broker = broker  # type: ignore[assignment]

    def reports() -> int:
        assert broker.returned.acquire(timeout=10)
        for thread in threading.enumerate():
            if thread.name == "kafka ready":
                thread.join(10)
        return caplog.text.count("Apache Kafka is ready again on 127.0.0.1:9092")

    with caplog.at_level(logging.INFO, "hitrouter.up"):
        process.start()
        broker.returncode = -9  # it ends before it has answered
        assert process.end() is not None
        assert reports() == 0
        process.start()
        broker.ready.set()
        assert reports() == 1
        assert process.end() is None
        process.start()
        process.stop()
        assert reports() == 1
