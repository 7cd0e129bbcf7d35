"""Tests stop signals at some moments of the start of each role; `make prove` tests 25 per role."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.kafka.embedded import EmbeddedBroker
from tests.faults.stops import stop_config, sweep, whole_lives, worker_lives

_SEED = 20261127


def test_workers_stop_cleanly_at_any_moment_and_leave_their_groups(kafka: EmbeddedBroker, tmp_path: Path) -> None:
    config = stop_config(kafka.bootstrap_servers, tmp_path, "stops-")
    problems = []
    for life in worker_lives(config, tmp_path):
        problems += sweep(life, 5 if life.groups else 3, _SEED, kafka.bootstrap_servers)
    assert problems == []


@pytest.mark.parametrize("number", range(3), ids=["kafka", "up", "demo"])
def test_commands_with_embedded_kafka_stop_cleanly_at_any_moment(number: int, tmp_path: Path) -> None:
    assert sweep(whole_lives(tmp_path)[number], 4, _SEED, None) == []
