"""A worker that comes back after Kafka has dropped its group's offsets reads on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from pipeline.config.models import Config
from pipeline.development.fault_server import FaultServer
from pipeline.kafka.offsets import spans
from pipeline.kafka.topics import TopicNames
from pipeline.operations.ledger import read_ledger
from tests.faults.delivering import start_fault_server
from tests.roles import delete_below, delivered, hit, put, running, wait_until

MakeConfig = Callable[..., Config]


def webhook(server: FaultServer) -> dict[str, Any]:
    return {"destination": "Webhook", "settings": {"url": server.url}, "delivery": {"allow_private": True}}


def age(config: Config, topic: str) -> None:
    """Take the first record of each partition, as retention does."""
    found = spans(config.kafka, topic, committed=False)
    delete_below(config, topic, {number: 1 for number, span in found.items() if not span.is_empty})


def drop_offsets(config: Config, group: str) -> None:
    """Do what `offsets.retention.minutes` does to a group without members."""
    admin = AdminClient({"bootstrap.servers": config.kafka.servers})
    wait_until(lambda: not admin.describe_consumer_groups([group])[group].result(30).members, "the end of the session")
    admin.delete_consumer_groups([group])[group].result(30)


@pytest.mark.parametrize("role", ["deliver", "route"])
def test_nothing_is_read_again(make_config: MakeConfig, tmp_path: Path, role: str) -> None:
    server, stop = start_fault_server()
    # A window that is over by the time of the restart: deduplication must not hide that records come again.
    config = make_config({"crm": webhook(server), "all": {"destination": "Kafka"}}, dedupe={"window": "1s"})
    names = TopicNames(config.kafka.topic_prefix)
    names_sent = [f"old-{number}" for number in range(40)]
    topic, group = (names.hits_raw, "route") if role == "route" else (names.deliveries("crm"), "deliver-crm")
    folders = {name: tmp_path / name for name in ("route", "deliver")}
    for folder in folders.values():
        folder.mkdir()
    try:
        with (
            running("route", config, folders["route"]) as route,
            running("deliver", config, folders["deliver"]) as deliver,
        ):
            put(config, *(hit(name) for name in names_sent))
            wait_until(lambda: len(server.taken) == len(names_sent), "all hits at the destination")
            wait_until(lambda: read_ledger(config).connections["crm"].delivered == len(names_sent), "the ledger")
            assert (route.stop(), deliver.stop()) == (0, 0)
        drop_offsets(config, names.prefix + group)
        age(config, topic)
        with running("route", config, folders["route"]), running("deliver", config, folders["deliver"]):
            put(config, hit("new"))
            wait_until(lambda: "new" in server.taken, "the new hit")
            assert server.taken.most_common(1)[0][1] == 1
            assert sorted(routed["hitId"] for routed in delivered(config, "all")) == sorted([*names_sent, "new"])
            ledger = read_ledger(config)
            assert ledger.adds_up and ledger.hits.received == len(names_sent) + 1
    finally:
        stop()
