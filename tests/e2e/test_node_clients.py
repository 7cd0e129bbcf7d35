"""Tests unmodified, published Node clients against the running intake.

Each sends a track, an identify and a page; every message must be on `hits-raw` once, with its messageId as hitId.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import read_topic
from tests.npm import NODE, SCRIPTS, installed


@pytest.mark.timeout(700)  # the first session fetches the packages
def test_each_message_arrives_once(intake_for_clients: Config) -> None:
    config = intake_for_clients
    sent: dict[str, list[str]] = {
        kind: [f"{kind}-{number}" for number in range(3)] for kind in ("segment", "rudder", "rudder-gzip")
    }
    for kind, ids in sent.items():
        command = [str(NODE), str(SCRIPTS / "clients.mjs"), f"http://{config.intake.listen}", kind, *ids]
        done = subprocess.run(command, cwd=installed(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    wanted = sorted(f"shop/{name}" for ids in sent.values() for name in ids)
    found: list[tuple[str, dict[str, Any]]] = [
        ((record.key() or b"").decode(), json.loads(record.value() or b""))
        for record in read_topic(config.kafka, TopicNames(config.kafka.topic_prefix).hits_raw)
        if (record.key() or b"").decode() in wanted
    ]
    # Each key once: a client that had sent again would have left a second record.
    assert sorted(key for key, _ in found) == wanted
    for _, value in found:
        assert value["event"]["user"]["userId"] == "client-user"
        assert value["event"]["name"] in {"Bought", "Identify", "Viewed Page"}
