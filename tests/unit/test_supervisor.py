"""Tests of the processes, restarts and log lines of `up`, with stubs for the processes."""

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
from pipeline.supervisor.processes import BrokerProcess, CannotStart, ProcessEnd, RoleProcess
from pipeline.supervisor.restarts import STABLE_SECONDS, advice, next_restart
from pipeline.supervisor.run import Child


class Stub:
    """A process with a given sequence of ends; each start uses the next one."""

    name = "route-0"

    def __init__(self, *ends: ProcessEnd | CannotStart) -> None:
        self.ends: Iterator[ProcessEnd | CannotStart] = iter(ends)
        self.starts = 0
        self.next_end: ProcessEnd | None = None

    def start(self) -> None:
        self.starts += 1
        following = next(self.ends)
        if isinstance(following, CannotStart):
            raise following
        self.next_end = following

    def end(self) -> ProcessEnd | None:
        return self.next_end

    def stop(self) -> None:
        pass


def test_each_intake_worker_is_a_process_with_its_own_slot() -> None:
    config = Config.model_validate({"intake": {"workers": 3}})
    assert workers_of(config) == [("intake", 0), ("intake", 1), ("intake", 2), ("route", 0), ("deliver", 0)]


def test_restart_delay_grows_with_consecutive_failures_and_resets_after_stable_uptime() -> None:
    failures, waits = 0, []
    for _ in range(9):
        restart = next_restart(failures, 1.0)
        failures = restart.failures
        waits.append(restart.wait_seconds)
    assert waits == [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0, 30.0]
    assert next_restart(failures, STABLE_SECONDS + 1) == next_restart(0, 1.0)


@pytest.mark.parametrize("code", [1, 2, 69, 70, -signal.SIGKILL, -signal.SIGSEGV, 99])
def test_role_is_restarted_after_every_exit_code(code: int, caplog: pytest.LogCaptureFixture) -> None:
    end = ProcessEnd(exit_name(code), "the reason", advice(code, "h.yaml"))
    process = Stub(*[end] * 6)
    child, now = Child(process), 0.0
    with caplog.at_level(logging.WARNING, "pipeline.supervisor"):
        while process.starts < 6:
            child.watch(now)
            now += 0.1
        child.watch(now)
    ended = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(ended) == 6
    assert all("role=route-0" in line and exit_name(code) in line and "reason=the reason" in line for line in ended)
    alerts = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert alerts == [
        f"role keeps failing: role=route-0 failures={failures} advice={advice(code, 'h.yaml')}" for failures in (5, 6)
    ]


def test_advice_quotes_file_names_for_the_shell() -> None:
    assert "`hitrouter validate -c 'my file.yaml'` and `hitrouter topics -c 'my file.yaml'`" in advice(
        1, "my file.yaml"
    )


def test_process_that_cannot_start_is_retried() -> None:
    process = Stub(
        CannotStart(ProcessEnd("not started", "Cannot allocate memory", "")), ProcessEnd("exit code 0", "", "")
    )
    child = Child(process)
    child.watch(0.0)
    assert (process.starts, child.failures, child.started_at) == (1, 1, None)
    child.watch(0.05)
    assert process.starts == 1
    child.watch(0.2)
    assert process.starts == 2 and child.started_at == 0.2


def test_missing_interpreter_raises_cannot_start(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(CannotStart) as caught:
        RoleProcess("route", 0, __file__, {}).start()  # type: ignore[arg-type]
    assert "No such file" in caught.value.end.reason


def test_exit_names_and_advice_for_exit_codes() -> None:
    assert [exit_name(code) for code in (0, 70, -9, -11)] == ["exit code 0", "exit code 70", "SIGKILL", "SIGSEGV"]
    assert "hitrouter validate -c h.yaml" in advice(1, "h.yaml")
    assert "hitrouter topics -c h.yaml" in advice(1, "h.yaml")
    assert "dmesg" in advice(-9, "h.yaml")


class StubBroker:
    """An EmbeddedBroker that responds once `ready` is set, and has ended once it has a `returncode`."""

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


def test_kafka_ready_is_logged_once_per_restart(caplog: pytest.LogCaptureFixture) -> None:
    process, broker = BrokerProcess(KafkaConfig()), StubBroker()
    process._broker = broker  # type: ignore[assignment]

    def reports() -> int:
        assert broker.returned.acquire(timeout=10)
        for thread in threading.enumerate():
            if thread.name == "kafka ready":
                thread.join(10)
        return caplog.text.count("kafka ready again: address=127.0.0.1:9092")

    with caplog.at_level(logging.INFO, "pipeline.supervisor"):
        process.start()
        broker.returncode = -9  # it ends before it responds
        assert process.end() is not None
        assert reports() == 0
        process.start()
        broker.ready.set()
        assert reports() == 1
        assert process.end() is None
        process.start()
        process.stop()
        assert reports() == 1
