"""Tests of reading committed offsets while the group coordinator moves."""

from __future__ import annotations

import subprocess
import sys

_ASK = """
from pipeline.config.models import KafkaConfig
from pipeline.kafka.watermarks import ClusterReader
from tests.unit.moved_coordinator import MovedCoordinator

moved = MovedCoordinator()
print(ClusterReader(KafkaConfig(bootstrap_servers=moved.address), 20.0).committed({"g": "x", "h": "none"}), moved.refused)
"""


def test_a_moved_coordinator_does_not_crash_the_process() -> None:
    """librdkafka issue 5040 is a segmentation fault, so this test uses a separate process."""
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=100, check=False)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == "{'g': {}, 'h': {}} 1\n"
