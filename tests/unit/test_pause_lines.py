"""What the log says of a connection that waits, and of its end (docs/reference/logs.md)."""

from __future__ import annotations

import logging

import pytest

from pipeline.delivery.backoff import Backoff
from pipeline.destination import Misconfigured, Retry


@pytest.mark.parametrize(
    ("failure", "state", "why"),
    [
        (Misconfigured("the destination answers 401"), "misconfigured", "the destination answers 401"),
        (Retry("http_503", 2.0), "failing", "http_503"),
    ],
)
def test_a_pause_names_the_connection_its_state_and_the_next_request(
    caplog: pytest.LogCaptureFixture, failure: Misconfigured | Retry, state: str, why: str
) -> None:
    caplog.set_level(logging.INFO, "hitrouter.deliver")
    backoff = Backoff("crm", 60.0, lambda: 0.0, lambda: 1.0)
    backoff.failed(failure, backoff.round)
    seconds = backoff.probe_at
    backoff.succeeded(backoff.round)
    assert [record.getMessage() for record in caplog.records] == [
        f"connection paused: connection=crm state={state} retry_in_seconds={seconds:.1f} reason={why}",
        "connection resumed: connection=crm",
    ]
