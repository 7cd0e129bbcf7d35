"""Partitions of the topics of connections are added while deliverers run: each hit is stored once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pipeline.config.models import Config
from pipeline.kafka.offsets import end_offsets
from pipeline.kafka.topics import TopicNames
from pipeline.operations.ledger import read_ledger
from tests.clickhouse import PASSWORD, ask_clickhouse
from tests.contract.test_growth import grow, numbered, with_partitions
from tests.roles import hit, put, running, wait_until

BEFORE, AFTER = 3, 5


def send(config: Config, names: list[str]) -> None:
    """Hits of as many users, so that they go to all partitions."""
    put(config, *(hit(name, event={"name": "E", "user": {"userId": name}}) for name in names))


def arrived(config: Config, count: int) -> Callable[[], bool]:
    return lambda: all(sums.delivered == count for sums in read_ledger(config).connections.values())


def test_each_hit_is_stored_once_through_a_growth(
    make_config: Callable[..., Config], tmp_path: Path, clickhouse: str
) -> None:
    folder = tmp_path / "lines"
    config = with_partitions(
        make_config(
            {
                "lines": {"destination": "Files", "settings": {"path": str(folder), "format": "jsonl"}},
                "columns": {
                    "destination": "ClickHouse",
                    "settings": {"url": clickhouse, "password": PASSWORD, "table": "grown"},
                },
            }
        ),
        BEFORE,
    )
    names = TopicNames(config.kafka.topic_prefix)
    topics = {connection: names.deliveries(connection) for connection in config.connections}
    (tmp_path / "route").mkdir()
    with (
        running("route", config, tmp_path / "route"),
        running("deliver", config, tmp_path) as first,
        running("deliver", config, tmp_path, slot=1) as second,
    ):
        send(config, numbered("before", 100))
        wait_until(arrived(config, 100), "the hits before the growth")
        send(config, numbered("meanwhile", 100))
        grow(config, AFTER, *topics.values())
        sent = [*numbered("before", 100), *numbered("meanwhile", 100)]
        for connection in config.connections:
            last = re.compile(rf"assigned: group={names.prefix}deliver-{connection} partitions=\[.*{AFTER - 1}\]")
            wait_until(
                lambda last=last: any(last.search(role.log.read_text()) for role in (first, second)),
                f"the new partitions of {connection}",
            )
        # The router's producer sees the new partitions within the interval of its metadata.
        while len(ends := new_partitions_with_records(config, topics)) < len(topics):
            more = numbered(f"round-{len(sent)}", 50)
            send(config, more)
            sent += more
            wait_until(arrived(config, len(sent)), f"{len(sent)} hits, while only {ends} have used new partitions")
        wait_until(arrived(config, len(sent)), f"all {len(sent)} hits")
        assert stored_lines(folder) == Counter(sent)
        rows = ask_clickhouse(clickhouse, "SELECT hit_id, count() FROM grown GROUP BY 1")
        assert {name: int(count) for name, count in rows} == Counter(sent)
        assert read_ledger(config).adds_up
        assert first.stop() == second.stop() == 0


def new_partitions_with_records(config: Config, topics: dict[str, str]) -> list[str]:
    return [
        connection
        for connection, topic in topics.items()
        if sum(end > 0 for number, end in end_offsets(config.kafka, topic, True).items() if number >= BEFORE)
        == AFTER - BEFORE
    ]


def stored_lines(folder: Path) -> Counter[str]:
    files = [file for file in folder.rglob("*.jsonl") if not file.name.startswith(".")]
    return Counter(json.loads(line)["hitId"] for file in files for line in file.read_text().splitlines())
