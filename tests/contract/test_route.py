"""The route role on a real Kafka: contract.md, sections 2, 3 and 5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.models import AdminConfig, Config
from pipeline.kafka.topics import TopicNames
from pipeline.operations.ledger import read_ledger
from pipeline.operations.read_topic import read_topic
from tests.roles import dead, delivered, free_admin_listen, hit, ids, put, running, wait_until

MakeConfig = Callable[..., Config]


def test_each_hit_reaches_its_connections_once(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    with running("route", config, tmp_path):
        put(config, hit("1"), hit("1"), hit("2", integrations={"b": False}), hit("3", integrations={"a": {"o": 1}}))
        put(config, hit("4"), project="blog")
        put(config, hit("1"))
        wait_until(lambda: read_ledger(config).hits.received == 6, "six hits received")
        assert ids(config, "a") == ["1", "2", "3", "4"]
        assert ids(config, "b") == ["1", "3"]
        options = {routed["hitId"]: routed.get("options") for routed in delivered(config, "a")}
        assert options == {"1": None, "2": None, "3": {"o": 1}, "4": None}
        ledger = read_ledger(config)
        assert (ledger.hits.unique, ledger.hits.duplicates, ledger.hits.dead) == (4, 2, 0)
        assert ledger.adds_up


def test_the_same_id_of_two_projects_are_two_hits(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    with running("route", config, tmp_path):
        put(config, hit("1"), project="shop")
        put(config, hit("1"), project="blog")
        wait_until(lambda: ids(config, "a") == ["1", "1"], "both hits")


def test_what_is_no_hit_is_a_dead_letter_with_reason_and_origin(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    with running("route", config, tmp_path):
        put(config, b"garbage", b'{"event": {}}', b"\x00\x00\x00\x00\x01wire")
        put(config, hit("1"), project=None)
        wait_until(lambda: len(dead(config)) == 4, "four dead letters")
        letters = {record.value(): dict(record.headers() or ()) for record in dead(config)}
        assert {headers["reason"] for headers in letters.values()} == {
            *(b"invalid_json", b"invalid_hit", b"unsupported_format", b"unknown_project")
        }
        garbage = letters[b"garbage"]
        assert garbage["stage"] == b"route"
        assert garbage["origin-topic"].decode() == TopicNames(config.kafka.topic_prefix).hits_raw
        assert garbage["origin-offset"].isdigit()
        assert delivered(config, "a") == []
        assert read_ledger(config).adds_up


def test_hits_without_an_id_stay_different_hits(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    with running("route", config, tmp_path):
        put(config, hit(None), hit(None))
        wait_until(lambda: len(delivered(config, "a")) == 2, "two hits")
        assert len(set(ids(config, "a"))) == 2


def test_a_restart_goes_on_and_remembers(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    with running("route", config, tmp_path) as worker:
        put(config, *(hit(str(number)) for number in range(100)))
        wait_until(lambda: len(delivered(config, "a")) == 100, "all hits")
        assert worker.stop() == 0
    put(config, hit("0"), hit("0", context={"other": 1}), hit("new"))
    with running("route", config, tmp_path):
        wait_until(lambda: "new" in ids(config, "a"), "the new hit")
        wait_until(lambda: read_ledger(config).hits.duplicates == 2, "the duplicates")
        assert read_ledger(config).hits.conflicting == 1
        assert len(ids(config, "a")) == 101


def test_kill_9_neither_loses_nor_doubles(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    with running("route", config, tmp_path) as worker:
        put(config, *(hit(str(number)) for number in range(3000)))
        wait_until(lambda: len(delivered(config, "a")) > 0, "a first transaction")
        worker.kill()
    put(config, *(hit(str(number)) for number in range(2500, 3500)))
    with running("route", config, tmp_path):
        wait_until(lambda: read_ledger(config).hits.received == 4000, "all hits")
        assert ids(config, "a") == sorted(str(number) for number in range(3500))
        assert read_ledger(config).adds_up


def test_a_second_worker_takes_its_share_and_gives_it_back(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    with running("route", config, tmp_path) as first:
        put(config, *(hit(str(number)) for number in range(50)))
        with running("route", config, tmp_path, slot=1) as second:
            first.wait_for("partitions assigned: ", 2)
            put(config, *(hit(str(number)) for number in range(100)))
            wait_until(lambda: len(delivered(config, "a")) == 100, "all hits")
            assert second.stop() == 0
        put(config, *(hit(str(number)) for number in range(150)))
        wait_until(lambda: len(delivered(config, "a")) == 150, "all hits after the second worker has left")
        wait_until(lambda: read_ledger(config).hits.received == 300, "all duplicates")
        assert read_ledger(config).adds_up


def test_two_workers_on_one_seat_fence_each_other(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    sent = 0

    def one_has_ended() -> bool:
        nonlocal sent
        put(config, *(hit(str(number)) for number in range(sent, sent + 20)))
        sent += 20
        return first.process.poll() is not None or second.process.poll() is not None

    twin = config.model_copy(update={"admin": AdminConfig(listen=free_admin_listen())})
    (tmp_path / "twin").mkdir()
    with running("route", config, tmp_path) as first, running("route", twin, tmp_path / "twin") as second:
        wait_until(one_has_ended, "the end of one of the two")
        loser = first if first.process.poll() is not None else second
        assert loser.process.poll() == 70
        assert "its own --slot" in loser.log.read_text()
        wait_until(lambda: len(delivered(config, "a")) == sent, "all hits, once")


@pytest.mark.parametrize("committed", [True, False])
def test_a_reader_reads_to_the_end_of_an_empty_topic(make_config: MakeConfig, committed: bool, tmp_path: Path) -> None:
    config = make_config()
    with running("route", config, tmp_path):
        topic = TopicNames(config.kafka.topic_prefix).deliveries("a")
        assert list(read_topic(config.kafka, topic, committed)) == []
