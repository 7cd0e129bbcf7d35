"""Tests of closing clients on background threads: a hanging close counts as abandoned until it returns."""

from __future__ import annotations

import threading

import pytest

from pipeline.kafka import daemon_thread
from pipeline.kafka.daemon_thread import abandoned_calls, close_in_background
from tests.roles import wait_until


def test_a_hanging_close_counts_as_abandoned_until_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    before, let_go = abandoned_calls(), threading.Event()
    assert not close_in_background(lambda: let_go.wait(30), 0.05)
    assert abandoned_calls() == before, "closing for less than _CLOSING_SECONDS does not count"
    monkeypatch.setattr(daemon_thread, "_CLOSING_SECONDS", 0.0)
    assert not close_in_background(lambda: let_go.wait(30), 0.05)
    assert abandoned_calls() == before + 1
    let_go.set()
    wait_until(lambda: abandoned_calls() == before, "the end of the close", 10)


def test_a_close_that_raises_counts_as_ended() -> None:
    def fails() -> None:
        raise RuntimeError("Consumer closed")

    assert close_in_background(fails, 10.0)


def test_threads_of_finished_closes_end() -> None:
    before = abandoned_calls()
    for _ in range(300):
        close_in_background(lambda: None)
    wait_until(lambda: abandoned_calls() == before, "the end of all closes", 10)
