"""Hits that retention deletes before they are read: they are counted and shown, and nothing else is affected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from pipeline.codec.ledger_entry import decode_ledger_entry
from pipeline.codec.set_aside import SetAsideHit
from pipeline.config.models import Config
from pipeline.development.fault_server import FaultServer, Rule
from pipeline.kafka.bounded_read import read_span
from pipeline.kafka.client import client_properties
from pipeline.kafka.offsets import spans
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.watermarks import ClusterReader
from pipeline.operations.ledger import ConnectionSums, read_ledger
from tests.contract.test_operations import hitrouter, webhook
from tests.faults.delivering import start_fault_server
from tests.roles import delete_below, hit, put, running, wait_until

MakeConfig = Callable[..., Config]
_SETS_ONE_ASIDE = (
    "pipeline.codec.set_aside:LAP_SECONDS=1,pipeline.delivery.refusals:MOST_AT_ONCE_IN_A_PAUSE=0,"
    "pipeline.delivery.refusals:KEEP_ORDER_SECONDS=3600"
)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made, stop = start_fault_server()
    yield made
    stop()


@pytest.fixture
def crm(make_config: MakeConfig, server: FaultServer) -> Config:
    """One connection to a webhook, with a retry every second."""
    delivery = {"allow_private": True, "longest_backoff": "1s", "max_in_flight": 1}
    return make_config({"crm": webhook(server, delivery=delivery)})


def user_hits(first: int, count: int) -> list[bytes]:
    """Return hits of different users, so that they spread over the partitions of a connection."""
    return [
        hit(f"hit-{number}", event={"name": "E", "user": {"userId": f"user-{number}"}})
        for number in range(first, first + count)
    ]


def put_keyed(config: Config, first: int, count: int) -> None:
    """Write the same hits with the keys of the intake, so that the router rekeys none of them."""
    for number, value in enumerate(user_hits(first, count), first):
        put(config, value, key=f"shop/hit-{number}".encode())


def topics(config: Config) -> TopicNames:
    return TopicNames(config.kafka.topic_prefix)


def crm_sums(config: Config) -> ConnectionSums:
    return read_ledger(config).connections["crm"]


def waiting_on(config: Config, topic: str, *partitions: int) -> list[bytes]:
    """Return the values on `partitions`."""
    return [record.value() or b"" for record in read_span(config.kafka, topic) if record.partition() in partitions]


def empty(config: Config, topic: str, *partitions: int) -> None:
    """Delete all records of `partitions`, or of the whole topic, as retention does."""
    found = spans(config.kafka, topic, committed=True)
    delete_below(config, topic, {number: found[number].end for number in partitions or found})


def explained(config: Config, folder: Path, hit_id: str) -> str:
    """Return the output of `hitrouter explain`."""
    return hitrouter(config, folder, "explain", hit_id).stdout


def ledger(config: Config, folder: Path) -> tuple[int, str, dict[str, Any]]:
    """Return exit code and text of `hitrouter ledger`, and its JSON."""
    told = hitrouter(config, folder, "ledger")
    return told.returncode, told.stdout, json.loads(hitrouter(config, folder, "ledger", "--json").stdout)


def gap_entries(config: Config, role: str) -> list[tuple[int, int, int]]:
    """Return the gaps that workers of `role` have recorded: partition, first offset, next offset."""
    entries = [decode_ledger_entry(r.value() or b"") for r in read_span(config.kafka, topics(config).ledger)]
    return sorted(
        (entry.partition, entry.first_offset, entry.next_offset)
        for entry in entries
        if entry.role == role and any(e.outcome == "expired" for e in entry.counts)
    )


def commit(config: Config, group: str, topic: str, offsets: dict[int, int]) -> None:
    """Commit offsets for a group, once its members have left."""
    name = f"{config.kafka.topic_prefix}{group}"
    wait_until(lambda: ClusterReader(config.kafka).without_members([name]), f"the members of {name} to leave")
    consumer = Consumer(client_properties(config.kafka, group__id=name))
    consumer.commit(offsets=[TopicPartition(topic, p, offset) for p, offset in offsets.items()], asynchronous=False)
    consumer.close()


def without_markers(config: Config, group: str) -> None:
    """Commit the end offsets, after all commit markers, as an idle worker does after some seconds."""
    for (topic, partition), mark in (
        ClusterReader(config.kafka).watermarks([topics(config).hits_raw, topics(config).deliveries("crm")]).items()
    ):
        if (topic == topics(config).hits_raw) == (group == "route"):
            commit(config, group, topic, {partition: mark.end})


def is_read(config: Config) -> bool:
    """Return whether the group of crm has committed the end of each partition for which it has an offset."""
    cluster, topic, group = (
        ClusterReader(config.kafka),
        topics(config).deliveries("crm"),
        f"{config.kafka.topic_prefix}deliver-crm",
    )
    committed = cluster.committed({group: topic})[group]
    ends = cluster.watermarks([topic])
    return bool(committed) and all(offset == ends[place].end for place, offset in committed.items())


def test_hits_that_expire_during_a_pause_are_counted_and_the_rest_is_delivered_after_the_fix(
    crm: Config, tmp_path: Path, server: FaultServer
) -> None:
    server.replace([Rule(status=401)])
    topic = topics(crm).deliveries("crm")
    (tmp_path / "route").mkdir()
    with running("route", crm, tmp_path / "route"):
        with running("deliver", crm, tmp_path, patches=_SETS_ONE_ASIDE) as deliver:
            put(crm, *user_hits(0, 40))
            wait_until(lambda: crm_sums(crm).routed == 40 and "crm" in read_ledger(crm).paused, "the pause")
            code, text, found = ledger(crm, tmp_path)
            assert code == 0 and "crm: oldest hit " in text and "expires in 6 d 23 h" in text
            assert found["connections"]["crm"]["pending"] == 40
            metrics = httpx.get(f"{deliver.admin}/metrics").text
            oldest = found["connections"]["crm"]["backlog"]["oldest_ms"] / 1000
            value = metrics.split('hitrouter_oldest_pending_timestamp_seconds{connection="crm"} ')[1].split()[0]
            assert 0 <= float(value) - oldest < 60
            remaining = 'hitrouter_retention_remaining_seconds{connection="crm"} '
            wait_until(lambda: "nan" not in _after(deliver.admin, remaining).lower(), "the retention")
            assert 6 * 86_400 < float(_after(deliver.admin, remaining)) < 7 * 86_400
            # The first refused hit is set aside, as it may be at fault itself. Its partition is not emptied.
            aside = SetAsideHit.read(next(read_span(crm.kafka, topics(crm).set_aside)).headers())  # type: ignore[arg-type]
            assert aside is not None
            emptied = [number for number in range(4) if number != aside.partition][:2]
            gone = [json.loads(value)["hitId"] for value in waiting_on(crm, topic, *emptied)]
            told = explained(crm, tmp_path, gone[0])
            assert "crm: pending" in told and "misconfigured since " in told and "the destination answers 401" in told
            assert ("behind " in told or "the next in its partition" in told) and "expires in 6 d 23 h" in told
            empty(crm, topic, *emptied)
            taken = len(gone)
            assert 0 < taken < 40
            assert "crm: expired before delivery" in explained(crm, tmp_path, gone[0])
            code, text, found = ledger(crm, tmp_path)
            assert code == 1 and f"EXPIRED: crm: {taken} hits, deleted by retention before delivery" in text
            assert "WRONG" not in text and "Everything adds up" not in text
            assert found["connections"]["crm"]["expired"] == taken
            assert found["connections"]["crm"]["pending"] == 40 - taken
            deliver.kill()
        server.replace([])
        with running("deliver", crm, tmp_path, patches=_SETS_ONE_ASIDE) as deliver:
            wait_until(lambda: crm_sums(crm).pending == 0, "the rest")
            code, text, found = ledger(crm, tmp_path)
            sums = found["connections"]["crm"]
            assert (sums["delivered"], sums["expired"], sums["expired_at_most"]) == (40 - taken, taken, taken)
            assert code == 1 and "WRONG" not in text and f"EXPIRED: crm: {taken} hits" in text
            assert sorted(server.taken.values()) == [1] * (40 - taken)
            assert [partition for partition, *_ in gap_entries(crm, "deliver")] == emptied
            width = sum(following - first for _, first, following in gap_entries(crm, "deliver"))
            counted = 'hitrouter_expired_offsets_total{connection="crm"} '
            wait_until(lambda: _after(deliver.admin, counted) == f"{float(width)}", "the metric")
            assert "crm: expired before delivery" in explained(crm, tmp_path, gone[-1])
            kept = next(f"hit-{number}" for number in range(40) if f"hit-{number}" not in gone)
            assert "crm: delivered" in explained(crm, tmp_path, kept)
            # An idle worker commits offsets after the commit markers, so that these do not count as expired.
            group = f"{topics(crm).prefix}deliver-crm"
            ends = {(topic, number): span.end for number, span in spans(crm.kafka, topic, committed=True).items()}
            cluster = ClusterReader(crm.kafka)
            wait_until(lambda: cluster.committed({group: topic})[group] == ends, "offsets behind the markers", 120)
            empty(crm, topic)
            assert "crm: delivered or skipped" in explained(crm, tmp_path, kept)
            deliver.stop()
        # After a restart, no gap is recorded a second time.
        with running("deliver", crm, tmp_path):
            put(crm, *user_hits(40, 5))
            wait_until(lambda: crm_sums(crm).delivered == 45 - taken, "five more")
            assert len(gap_entries(crm, "deliver")) == 2 and crm_sums(crm).expired == taken


def _after(address: str, text: str) -> str:
    found = httpx.get(f"{address}/metrics").text.split(text)
    return found[1].split()[0] if len(found) > 1 else "nan"


def test_without_worker_expired_hits_are_not_shown_as_still_deliverable(crm: Config, tmp_path: Path) -> None:
    with running("route", crm, tmp_path):
        put(crm, *user_hits(0, 5))
        wait_until(lambda: crm_sums(crm).routed == 5, "the routed hits")
    empty(crm, topics(crm).deliveries("crm"))
    code, text, found = ledger(crm, tmp_path)
    assert code == 1 and "EXPIRED: crm: 5 hits, deleted by retention before delivery\n" in text
    assert not found["connections"]["crm"]["backlog"]["has_worker"]


def test_hits_raw_that_expire_without_a_router_are_counted_and_the_backlog_is_shown(
    crm: Config, tmp_path: Path
) -> None:
    with running("route", crm, tmp_path) as route:
        put_keyed(crm, 0, 4)
        wait_until(lambda: read_ledger(crm).hits.received == 4, "four hits")
        route.stop()
    put_keyed(crm, 4, 20)
    code, text, found = ledger(crm, tmp_path)
    assert "not routed yet: 20 hits, oldest hit " in text and "NO ROUTER RUNS" in text
    assert code == 0 and found["not_routed"]["records"] == 20 and not found["not_routed"]["has_worker"]
    told = explained(crm, tmp_path, "hit-23")
    assert (
        "the first with this id: not routed yet, " in told
        and "no router is running" in told
        and "crm: not routed yet" in told
    )
    group = f"{crm.kafka.topic_prefix}route"
    before = ClusterReader(crm.kafka).committed({group: topics(crm).hits_raw})[group]
    marks = spans(crm.kafka, topics(crm).hits_raw, committed=True)
    taken = sum(marks[number].end - before.get((topics(crm).hits_raw, number), 0) for number in (0, 1))
    empty(crm, topics(crm).hits_raw, 0, 1)
    code, text, found = ledger(crm, tmp_path)
    assert code == 1 and f"EXPIRED: up to {taken} hits of hits-raw, deleted by retention before a router" in text
    assert f"not routed yet: {20 - taken} hits" in text
    with running("route", crm, tmp_path) as route:
        wait_until(lambda: read_ledger(crm).hits.received == 24 - taken, "the rest")
        wait_until(lambda: sum(b - a for _, a, b in gap_entries(crm, "route")) == taken, "the gaps")
        code, text, found = ledger(crm, tmp_path)
        assert code == 1 and found["hits"]["expired_at_most"] == taken and "not routed yet" not in text
        counted = 'hitrouter_expired_offsets_total{connection=""} '
        wait_until(lambda: _after(route.admin, counted) == f"{float(taken)}", "the metric")


def test_emptied_topics_add_up_if_everything_was_delivered(crm: Config, tmp_path: Path, server: FaultServer) -> None:
    (tmp_path / "route").mkdir()
    with running("route", crm, tmp_path / "route"), running("deliver", crm, tmp_path):
        put(crm, *user_hits(0, 20), key=b"another")  # the router rekeys them, so hits-raw gets commit markers
        wait_until(lambda: crm_sums(crm).delivered == 20, "twenty hits")
    for group in ("route", "deliver-crm"):
        without_markers(crm, group)
    for topic in (topics(crm).hits_raw, topics(crm).deliveries("crm"), topics(crm).seen_hits):
        empty(crm, topic)
    code, text, _ = ledger(crm, tmp_path)
    assert code == 0 and "Everything adds up." in text
    empty(crm, topics(crm).ledger)
    code, text, found = ledger(crm, tmp_path)
    assert code == 0 and "Retention has deleted all entries of the ledger" in text and not found["is_complete"]
    with running("route", crm, tmp_path / "route"), running("deliver", crm, tmp_path):
        put(crm, *user_hits(20, 5))
        wait_until(lambda: crm_sums(crm).delivered == 5, "five more")
        assert gap_entries(crm, "route") == gap_entries(crm, "deliver") == []
        assert read_ledger(crm).adds_up


def test_deleted_commit_markers_are_not_expired_hits(crm: Config, tmp_path: Path) -> None:
    """The worker was killed before it committed offsets after the markers. No hit expired, even if the ledger is deleted."""
    (tmp_path / "route").mkdir()
    with running("route", crm, tmp_path / "route"):
        with running("deliver", crm, tmp_path):
            put(crm, *user_hits(0, 8))
            wait_until(lambda: crm_sums(crm).delivered == 8, "eight hits")
        empty(crm, topics(crm).deliveries("crm"))
        assert ledger(crm, tmp_path)[0] == 0
        empty(crm, topics(crm).ledger)
        with running("deliver", crm, tmp_path) as deliver:
            wait_until(lambda: is_read(crm), "offsets behind the markers")
            assert gap_entries(crm, "deliver") == []
            code, text, found = ledger(crm, tmp_path)
            assert _after(deliver.admin, 'hitrouter_expired_offsets_total{connection="crm"} ') in ("nan", "0.0")
    assert code == 0 and "EXPIRED" not in text and found["connections"]["crm"]["gap_offsets"] == 0


def test_ledger_with_deleted_entries_adds_up_unless_a_hit_is_lost(
    crm: Config, tmp_path: Path, server: FaultServer
) -> None:
    (tmp_path / "route").mkdir()
    with running("route", crm, tmp_path / "route"), running("deliver", crm, tmp_path) as deliver:
        put(crm, *user_hits(0, 10))
        wait_until(lambda: crm_sums(crm).delivered == 10, "ten hits")
        cut = next(r.offset() or 0 for r in read_span(crm.kafka, topics(crm).ledger) if _delivers(r))
        delete_below(crm, topics(crm).ledger, {0: cut})  # between routed and delivered
        code, text, found = ledger(crm, tmp_path)
        assert code == 0 and "WRONG" not in text and "The ledger begins at " in text and "Everything adds up." in text
        sums = found["connections"]["crm"]
        assert (sums["pending"], sums["earlier"]) == (0, 10)
        server.replace([Rule(status=503)])
        put(crm, *user_hits(10, 25))
        wait_until(lambda: crm_sums(crm).pending == 25, "25 more that wait")
        deliver.kill()
        # The group skips 25 hits that retention did not delete. The deleted entries can hide up to 10 of this loss.
        ends = spans(crm.kafka, topics(crm).deliveries("crm"), committed=True)
        commit(crm, "deliver-crm", topics(crm).deliveries("crm"), {p: span.end for p, span in ends.items()})
        code, text, _ = ledger(crm, tmp_path)
        assert code == 1 and "WRONG: crm: 15 hits are missing" in text


def _delivers(record: Any) -> bool:
    return decode_ledger_entry(record.value() or b"").role == "deliver"


@pytest.mark.parametrize(
    ("beyond", "problem"), [(0, "were skipped, and their hits are not in the ledger"), (490, "ends at")]
)
def test_router_offsets_set_by_hand_are_a_problem(crm: Config, tmp_path: Path, beyond: int, problem: str) -> None:
    ensure_topics(crm)
    put(crm, *user_hits(0, 30))
    ends = spans(crm.kafka, topics(crm).hits_raw, committed=True)
    commit(crm, "route", topics(crm).hits_raw, {p: span.end + beyond for p, span in ends.items()})
    code, text, _ = ledger(crm, tmp_path)
    assert code == 1 and f"WRONG: {topics(crm).hits_raw}-0" in text and problem in text


def test_connection_offsets_set_by_hand_show_missing_hits(crm: Config, tmp_path: Path) -> None:
    with running("route", crm, tmp_path):
        put(crm, *user_hits(0, 10))
        wait_until(lambda: crm_sums(crm).routed == 10, "ten hits")
        ends = spans(crm.kafka, topics(crm).deliveries("crm"), committed=True)
        commit(crm, "deliver-crm", topics(crm).deliveries("crm"), {p: span.end for p, span in ends.items()})
        code, text, _ = ledger(crm, tmp_path)
    assert code == 1 and "WRONG: crm: 10 hits are missing" in text


def test_retention_of_the_broker_expires_hits_that_are_counted(
    crm: Config, tmp_path: Path, server: FaultServer
) -> None:
    """The topic of a paused connection expires; the broker checks retention once a minute."""
    server.replace([Rule(status=503)])
    topic = topics(crm).deliveries("crm")
    (tmp_path / "route").mkdir()
    with running("route", crm, tmp_path / "route"), running("deliver", crm, tmp_path):
        put(crm, *user_hits(0, 12))
        wait_until(lambda: crm_sums(crm).routed == 12, "twelve hits")
        wait_until(lambda: "crm" in read_ledger(crm).failing, "the failure")
        assert "FAILING: crm since " in hitrouter(crm, tmp_path, "ledger").stdout
        assert "failing since " in (told := explained(crm, tmp_path, "hit-0")) and "http_503" in told
        entries = [ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        client = AdminClient({"bootstrap.servers": crm.kafka.servers})
        client.incremental_alter_configs([resource])[resource].result(30)
        told = hitrouter(crm, tmp_path, "ledger").stdout
        assert "can expire at any moment" in told or "EXPIRED: crm" in told, "the broker may look at once"
        wait_until(lambda: all(s.is_empty for s in spans(crm.kafka, topic, committed=True).values()), "retention", 150)
        code, _, found = ledger(crm, tmp_path)
        assert (
            code == 1 and found["connections"]["crm"]["expired"] == 12 and found["connections"]["crm"]["pending"] == 0
        )
        server.replace([])
        # Hits in the worker's memory are delivered; the others are recorded as a gap.
        wait_until(lambda: crm_sums(crm).gap_offsets > 0 and crm_sums(crm).pending == 0, "the gap")
        sums = wait_until(lambda: _settled(crm), "an outcome for each hit")
        assert sums.delivered == len(server.taken) > 0
        wait_until(lambda: read_ledger(crm).failing == {}, "the end of the failure")
    assert ledger(crm, tmp_path)[0] == 1


def _settled(config: Config) -> ConnectionSums | None:
    sums = crm_sums(config)
    return sums if sums.delivered + sums.expired == 12 and sums.expired == sums.expired_at_most else None


def test_ledger_read_under_traffic_adds_up(crm: Config, tmp_path: Path) -> None:
    (tmp_path / "route").mkdir()
    with running("route", crm, tmp_path / "route"), running("deliver", crm, tmp_path):
        for number in range(25):
            put(crm, *user_hits(number * 40, 40))
            found = read_ledger(crm)
            assert found.adds_up, (found.problems, found.expired)
        wait_until(lambda: crm_sums(crm).delivered == 1000, "every hit", 120)


def test_ledger_names_the_address_of_an_unavailable_kafka(crm: Config, tmp_path: Path) -> None:
    away = crm.model_copy(update={"kafka": crm.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})})
    told = hitrouter(away, tmp_path, "ledger")
    assert told.returncode == 69
