"""Tests of the metrics for the age of a pending batch and for its remaining retention."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from pipeline.telemetry.backlog import OldestByTopic, OldestPending


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pending(clock: Clock) -> Iterator[OldestPending]:
    made = OldestPending("crm-of-a-test", clock, clock)
    yield made
    made.close()


def shown(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"hitrouter_{name}_seconds", {"connection": "crm-of-a-test"})


def test_batch_in_progress_has_an_age_and_a_remaining_retention(pending: OldestPending, clock: Clock) -> None:
    pending.retention_seconds = 100.0
    clock.now += 10
    assert (shown("oldest_pending_timestamp"), shown("retention_remaining")) == (0.0, 100.0)
    with pending.in_progress(round((clock.now - 30) * 1000)):
        assert (shown("oldest_pending_timestamp"), shown("retention_remaining")) == (clock.now - 30, 70.0)
        clock.now += 80  # it waits for its destination
        assert shown("retention_remaining") == -10.0
    assert shown("retention_remaining") == -10.0  # the next batch can follow at once
    clock.now += 3
    assert (shown("oldest_pending_timestamp"), shown("retention_remaining")) == (0.0, 100.0)


def test_batch_without_records_has_no_age(pending: OldestPending, clock: Clock) -> None:
    clock.now += 10
    with pending.in_progress(None):
        assert shown("oldest_pending_timestamp") == 0.0


def test_unknown_and_infinite_retention(pending: OldestPending, clock: Clock) -> None:
    assert math.isnan(shown("retention_remaining") or 0.0)
    pending.retention_seconds = math.inf
    with pending.in_progress(round(clock.now * 1000)):
        assert shown("retention_remaining") == math.inf


def test_metrics_of_a_removed_connection_are_removed() -> None:
    topics = OldestByTopic()
    topics.open("deliveries-crm", "crm-of-a-test")
    assert shown("oldest_pending_timestamp") == 0.0
    topics.close("deliveries-crm")
    topics.close("deliveries-crm")
    assert shown("oldest_pending_timestamp") is None
