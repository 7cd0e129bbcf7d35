"""The log lines of a paused and a resumed connection (docs/reference/logs.md)."""

from __future__ import annotations

import logging

import pytest

from pipeline.delivery.backoff import Backoff
from pipeline.destination import Misconfigured, Retry


@pytest.mark.parametrize(
    ("failure", "state", "reason"),
    [
        (Misconfigured("the destination answers 401"), "misconfigured", "the destination answers 401"),
        (Retry("http_503", 2.0), "failing", "http_503"),
    ],
)
def test_pause_log_names_connection_state_retry_time_and_reason(
    caplog: pytest.LogCaptureFixture, failure: Misconfigured | Retry, state: str, reason: str
) -> None:
    caplog.set_level(logging.INFO, "pipeline.delivery")
    backoff = Backoff("crm", 60.0, lambda: 0.0, lambda: 1.0)
    backoff.failed(failure, backoff.round)
    seconds = backoff.probe_at
    backoff.succeeded(backoff.round)
    assert [record.getMessage() for record in caplog.records] == [
        f"connection paused: connection=crm state={state} retry_in_seconds={seconds:.1f} reason={reason}",
        "connection resumed: connection=crm",
    ]
