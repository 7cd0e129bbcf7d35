"""Clients are closed on a thread of their own: one whose close hangs is counted until it returns, one that fails is closed."""

from __future__ import annotations

import threading

import pytest

from pipeline.kafka import daemon_thread
from pipeline.kafka.daemon_thread import abandoned_calls, close_beside
from tests.roles import wait_until


def test_a_close_that_hangs_is_left_alone_and_counted_until_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    before, let_go = abandoned_calls(), threading.Event()
    assert not close_beside(lambda: let_go.wait(30), 0.05)
    assert abandoned_calls() == before, "it is only being closed"
    monkeypatch.setattr(daemon_thread, "_CLOSING_SECONDS", 0.0)
    assert not close_beside(lambda: let_go.wait(30), 0.05)
    assert abandoned_calls() == before + 1
    let_go.set()
    wait_until(lambda: abandoned_calls() == before, "the end of the close", 10)


def test_a_close_that_fails_has_ended() -> None:
    def fails() -> None:
        raise RuntimeError("Consumer closed")

    assert close_beside(fails, 10.0)


def test_closes_that_nobody_waits_for_do_not_pile_up() -> None:
    before = abandoned_calls()
    for _ in range(300):
        close_beside(lambda: None)
    wait_until(lambda: abandoned_calls() == before, "the end of all closes", 10)
