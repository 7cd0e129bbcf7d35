"""Tests of declared topics, of the severity of differences, and of the commands that fix them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from pipeline.codec.durations import duration_text
from pipeline.config.models import Config
from pipeline.console.topics_table import growth_hint, topics_as_lines
from pipeline.kafka.topics import ensure
from pipeline.kafka.topics.actual import ActualTopic
from pipeline.kafka.topics.commands import commands_for, create_command
from pipeline.kafka.topics.declared import Topic, declare_topics
from pipeline.kafka.topics.differences import Difference, Severity, compare_topics
from pipeline.kafka.topics.safe_changes import SafeChanges, missing_topics, safe_changes
from pipeline.kafka.topics.tools import CLIENT_FILE, client_file_hint, tool_hints
from pipeline.operations.topics import Topics, TopicState

BREAKS, REPORTED = Severity.BREAKS_PROMISE, Severity.REPORTED
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def configured(**sections: Any) -> Config:
    connections = {"crm": {"destination": "Webhook"}, "all": {"destination": "Kafka", "retention": "2h"}}
    return Config.model_validate({"connections": connections, **sections})


def declared(**sections: Any) -> dict[str, Topic]:
    return {topic.name: topic for topic in declare_topics(configured(**sections))}


def as_declared(topics: dict[str, Topic]) -> dict[str, ActualTopic]:
    return {t.name: ActualTopic(t.name, t.partitions, t.replication_factor, dict(t.settings)) for t in topics.values()}


def changed(actual: dict[str, ActualTopic], topic: str, **changes: Any) -> dict[str, ActualTopic]:
    """Return `actual` with other partitions or replication_factor of `topic`, or with other settings (dots as `__`)."""
    found = actual[topic]
    fields = {name: changes.pop(name) for name in ("partitions", "replication_factor") if name in changes}
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return {**actual, topic: replace(found, settings={**found.settings, **settings}, **fields)}


def retention(topic: Topic) -> tuple[int, int]:
    return int(topic.settings["retention.ms"]), int(topic.settings["segment.ms"])


def test_the_topics_of_an_empty_configuration() -> None:
    topics = declared()
    assert {name: retention(topic) for name, topic in topics.items()} == {
        "hits-raw": (7 * DAY_MS, 21 * HOUR_MS),
        "seen-hits": (8 * DAY_MS + 21 * HOUR_MS, 21 * HOUR_MS),
        "dead-letters": (30 * DAY_MS, 90 * HOUR_MS),
        "ledger": (30 * DAY_MS, 90 * HOUR_MS),
        "set-aside": (7 * DAY_MS, 21 * HOUR_MS),
        "deliveries-crm": (7 * DAY_MS, 21 * HOUR_MS),
        "deliveries-all": (2 * HOUR_MS, HOUR_MS // 4),
    }


def test_each_kind_and_each_connection_has_its_own_retention() -> None:
    kept = {"hits_raw": "2d", "deliveries": "3d", "dead_letters": "4d", "ledger": "5d"}
    topics = declared(kafka={"retention": kept})
    days = {name: retention(topic)[0] / DAY_MS for name, topic in topics.items()}
    assert (days["hits-raw"], days["deliveries-crm"], days["dead-letters"], days["ledger"]) == (2, 3, 4, 5)
    assert days["deliveries-all"] == 1 / 12
    assert days["seen-hits"] == 1 + 2 * 9 / 8, "the window, and how long a hit may wait for a router"


def test_hits_raw_keeps_at_least_the_window_and_seen_hits_keeps_more() -> None:
    topics = declared(kafka={"retention": {"hits_raw": "1h"}}, dedupe={"window": "2d"})
    assert retention(topics["hits-raw"])[0] == 2 * DAY_MS
    assert retention(topics["seen-hits"]) == (4 * DAY_MS + 6 * HOUR_MS, 6 * HOUR_MS)


def test_retentions_of_minutes() -> None:
    kept = dict.fromkeys(("hits_raw", "deliveries", "dead_letters", "ledger"), "5m")
    topics = declared(kafka={"retention": kept}, dedupe={"window": "1m"})
    minute = 60_000
    assert retention(topics["hits-raw"]) == retention(topics["ledger"]) == (5 * minute, minute)
    assert retention(topics["seen-hits"]) == (7 * minute, minute)


def test_no_segment_is_longer_than_kafkas_default() -> None:
    assert retention(declared(kafka={"retention": {"ledger": "3650d"}})["ledger"]) == (3650 * DAY_MS, 7 * DAY_MS)


@pytest.mark.parametrize(
    ("topic", "changes", "severity"),
    [
        ("hits-raw", {"partitions": 3}, BREAKS),
        ("hits-raw", {"replication_factor": 1}, REPORTED),
        ("hits-raw", {"replication_factor": 5}, REPORTED),
        ("hits-raw", {"message__timestamp__type": "CreateTime"}, BREAKS),
        ("seen-hits", {"message__timestamp__type": "CreateTime"}, REPORTED),
        ("seen-hits", {"partitions": 3}, REPORTED),
        ("seen-hits", {"partitions": 5}, REPORTED),
        ("seen-hits", {"retention__ms": str(DAY_MS - 1)}, BREAKS),
        ("seen-hits", {"retention__ms": str(DAY_MS)}, REPORTED),
        ("seen-hits", {"retention__ms": str(60 * DAY_MS)}, REPORTED),
        ("seen-hits", {"retention__ms": "-1"}, REPORTED),
        ("hits-raw", {"retention__ms": "60000"}, REPORTED),
        ("deliveries-crm", {"retention__ms": "60000"}, REPORTED),
        ("deliveries-crm", {"retention__ms": "-1"}, REPORTED),
        ("deliveries-crm", {"retention__bytes": "1000000"}, REPORTED),
        ("deliveries-crm", {"partitions": 3}, REPORTED),
        ("deliveries-crm", {"partitions": 12}, REPORTED),
        ("deliveries-crm", {"cleanup__policy": "compact"}, BREAKS),
        ("ledger", {"cleanup__policy": "compact,delete"}, BREAKS),
        ("ledger", {"cleanup__policy": ""}, REPORTED),
        ("ledger", {"partitions": 2}, REPORTED),
        ("dead-letters", {"min__insync__replicas": "1"}, BREAKS),
        ("dead-letters", {"min__insync__replicas": "3"}, REPORTED),
        ("dead-letters", {"partitions": 6}, REPORTED),
        ("deliveries-all", {"segment__ms": "604800000"}, REPORTED),
        ("deliveries-all", {"segment__ms": "60000"}, REPORTED),
        ("deliveries-all", {"compression__type": "zstd"}, REPORTED),
    ],
    ids=str,
)
def test_the_severity_of_a_difference(topic: str, changes: dict[str, Any], severity: Severity) -> None:
    topics = declared(kafka={"replication_factor": 3})
    (found,) = compare_topics(topics.values(), changed(as_declared(topics), topic, **changes))
    assert (found.topic, found.severity) == (topic, severity)
    assert found.setting.replace(".", "__").replace(" ", "_") in changes
    assert found.actual == str(next(iter(changes.values())))


def test_topics_as_declared_have_no_differences() -> None:
    topics = declared()
    assert compare_topics(topics.values(), as_declared(topics)) == []


def test_fewer_partitions_of_dead_letters_are_no_difference() -> None:
    topics = declared(kafka={"partitions": 8})
    assert compare_topics(topics.values(), changed(as_declared(topics), "dead-letters", partitions=4)) == []


def test_a_setting_that_the_broker_does_not_know_is_no_difference() -> None:
    topics = declared()
    actual = as_declared(topics)
    del actual["ledger"].settings["segment.ms"]
    assert compare_topics(topics.values(), actual) == []


def test_hits_raw_may_have_more_partitions_and_seen_hits_needs_as_many() -> None:
    topics = declared()
    grown = changed(as_declared(topics), "hits-raw", partitions=8)
    narrow, wide = compare_topics(topics.values(), grown)
    assert (narrow.topic, narrow.severity, narrow.declared) == ("seen-hits", REPORTED, "8")
    assert str(narrow).startswith("partitions is 4, needed 8: as many as hits-raw has; a router adds")
    assert (wide.topic, wide.severity) == ("hits-raw", REPORTED)
    both = changed(grown, "seen-hits", partitions=8)
    assert {found.severity for found in compare_topics(topics.values(), both)} == {REPORTED}
    assert safe_changes(topics.values(), grown).partitions == {"seen-hits": 8}
    assert missing_topics(topics.values(), {"hits-raw": grown["hits-raw"]})[0].partitions == 8


def test_too_few_partitions_of_hits_raw_stop_a_role_and_of_seen_hits_do_not() -> None:
    topics = declared(kafka={"partitions": 8})
    actual = changed(changed(as_declared(topics), "hits-raw", partitions=4), "seen-hits", partitions=4)
    found = [(difference.topic, difference.severity) for difference in compare_topics(topics.values(), actual)]
    assert found == [("hits-raw", BREAKS), ("seen-hits", REPORTED)]


def mended(topic: str, sections: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    config = configured(**(sections or {}))
    topics = {found.name: found for found in declare_topics(config)}
    actual = changed(as_declared(topics), topic, **changes)
    (found,) = compare_topics(topics.values(), actual)
    return commands_for(config.kafka, found, topics[topic], actual[topic])


def test_a_command_of_kafka_fixes_a_difference() -> None:
    server = "--bootstrap-server 127.0.0.1:9092"
    configs = f"kafka-configs.sh {server} --alter --entity-type topics --entity-name"
    assert mended("ledger", cleanup__policy="compact") == [f"{configs} ledger --add-config cleanup.policy=delete"]
    assert mended("deliveries-crm", retention__ms="1") == [
        f"{configs} deliveries-crm --add-config retention.ms={7 * DAY_MS}"
    ]
    assert mended("seen-hits", partitions=3) == [f"kafka-topics.sh {server} --alter --topic seen-hits --partitions 4"]
    ours, kafkas = mended("hits-raw", partitions=3)
    assert "hitrouter topics --partitions 4" in ours
    assert kafkas == f"kafka-topics.sh {server} --alter --topic hits-raw --partitions 4"
    assert mended("deliveries-crm", partitions=3) == [
        "hitrouter topics --connection crm --partitions 4",
        "or set connections.crm.partitions: 3 in the file",
    ]
    assert mended("seen-hits", partitions=6) == ["Kafka cannot remove partitions; set kafka.partitions: 6 in the file"]
    assert mended("deliveries-crm", partitions=6) == [
        "Kafka cannot remove partitions; set connections.crm.partitions: 6 in the file"
    ]
    assert "set kafka.replication_factor: 2 in the file" in mended("ledger", replication_factor=2)[0]


def test_values_in_commands_are_quoted_for_the_shell() -> None:
    servers = "a:9092, b:9092;c:9092"
    (command,) = mended("ledger", {"kafka": {"bootstrap_servers": servers}}, cleanup__policy="compact")
    assert shlex.split(command)[:3] == ["kafka-configs.sh", "--bootstrap-server", servers]


def test_the_fix_never_requires_more_in_sync_replicas_than_there_are() -> None:
    lines = mended("ledger", {"kafka": {"replication_factor": 3}}, min__insync__replicas="1")
    assert len(lines) == 1
    config = configured(kafka={"replication_factor": 3})
    topics = {found.name: found for found in declare_topics(config)}
    actual = changed(as_declared(topics), "ledger", min__insync__replicas="1", replication_factor=1)
    found = next(found for found in compare_topics(topics.values(), actual) if found.breaks_promise)
    first, command = commands_for(config.kafka, found, topics["ledger"], actual["ledger"])
    assert first.startswith("set kafka.replication_factor: 1 in the file") and "min.insync.replicas=2" in command


def test_the_commands_name_the_settings_of_a_secured_kafka() -> None:
    secured = {"client": {"security.protocol": "SASL_SSL", "sasl.password": "hush"}}
    (command,) = mended("ledger", {"kafka": secured}, cleanup__policy="compact")
    assert "--bootstrap-server 127.0.0.1:9092 --command-config client.properties --alter" in command
    kafka = configured(kafka=secured).kafka
    assert "hush" not in command + create_command(kafka, declared()["ledger"]) + "".join(client_file_hint(kafka))
    assert client_file_hint(kafka) and not client_file_hint(configured().kafka)
    scripts, client_file = tool_hints(kafka, [command, command])
    assert "kafka.apache.org/downloads" in scripts and CLIENT_FILE in client_file
    assert tool_hints(kafka, ["hitrouter topics --apply"]) == []
    assert tool_hints(configured().kafka, mended("ledger", cleanup__policy="compact")) == [scripts]


def test_only_changes_that_delete_nothing_are_safe() -> None:
    topics = declared()
    actual = as_declared(topics)
    del actual["deliveries-all"]
    actual = changed(actual, "ledger", retention__ms=str(DAY_MS), segment__ms=str(HOUR_MS))
    actual = changed(actual, "dead-letters", retention__ms=str(90 * DAY_MS), segment__ms=str(7 * DAY_MS))
    actual = changed(actual, "hits-raw", retention__ms="-1", partitions=3, message__timestamp__type="CreateTime")
    safe = safe_changes(topics.values(), actual)
    assert [topic.name for topic in safe.create] == ["deliveries-all"]
    assert safe.settings == {"ledger": {"retention.ms": str(30 * DAY_MS), "segment.ms": str(90 * HOUR_MS)}}
    assert safe.partitions == {}
    mends = {(found.topic, found.setting): safe.fixes(found) for found in compare_topics(topics.values(), actual)}
    assert [key for key, is_mended in mends.items() if is_mended] == [
        ("ledger", "retention.ms"),
        ("ledger", "segment.ms"),
    ]


def test_many_differences_are_a_few_lines_and_each_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    differences = [Difference(f"deliveries-{n}", "segment.ms", "1", "2", REPORTED) for n in range(500)]
    ensure.report(differences)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 21 and "differences=500 not_shown=480" in lines[-1]
    ensure.report(differences)
    assert len(caplog.records) == 21
    ensure.report([*differences, replace(differences[0], actual="3")])
    assert [record.getMessage() for record in caplog.records][21:] == [
        "topic differs from the file: topic=deliveries-0 difference=segment.ms is 3 ms, declared 1 ms",
        "topics differ: differences=1 not_shown=0 advice=run `hitrouter topics` to see all",
    ]


def test_values_of_a_difference_have_units_or_milliseconds_if_rounding_hides_it() -> None:
    found = Difference("t", "retention.ms", str(7 * DAY_MS), str(30 * HOUR_MS), REPORTED, "records expire sooner")
    assert str(found) == "retention.ms is 1 d 6 h, declared 7 d: records expire sooner"
    close = replace(found, actual=str(7 * DAY_MS + 1), consequence="")
    assert str(close) == f"retention.ms is {7 * DAY_MS + 1}, declared {7 * DAY_MS}"
    assert str(replace(close, actual="-1")) == "retention.ms is unlimited, declared 7 d"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (999, "999 ms"),
        (61_000, "1 min 1 s"),
        (7 * DAY_MS, "7 d"),
        (5 * DAY_MS + 2 * HOUR_MS + 59_000, "5 d 2 h"),
        (DAY_MS + 59_000, "1 d"),
    ],
)
def test_a_duration_has_two_units(milliseconds: int, text: str) -> None:
    assert duration_text(milliseconds) == text


def test_after_a_growth_only_the_remaining_steps_are_shown() -> None:
    config = configured(kafka={"partitions": 4})
    grown = growth_hint(config, 8, None, has_grown=True)
    assert grown.startswith("Next: set kafka.partitions: 8 in the file. Running workers")
    assert growth_hint(config, 4, None, has_grown=True).startswith("Running workers")
    nothing = "Nothing to do: hits-raw already has 4 partitions, as the file declares."
    assert growth_hint(config, 4, None, has_grown=False) == nothing
    unset = "hits-raw already has 8 partitions. Next: set kafka.partitions: 8 in the file."
    assert growth_hint(config, 8, None, has_grown=False) == unset
    assert growth_hint(config, 4, "crm", has_grown=False).startswith("Nothing to do: deliveries-crm already has 4")
    assert "set connections.crm.partitions: 8" in growth_hint(config, 8, "crm", has_grown=True)


def test_an_empty_topic_of_a_removed_connection_has_no_pending_hits() -> None:
    actual = as_declared(declared())["deliveries-all"]
    state = TopicState("deliveries-old", None, replace(actual, name="deliveries-old"))
    lines = list(topics_as_lines(configured(), Topics([state], SafeChanges([], {}, {}))))
    assert "deliveries-old: connection old is not in the file; its topic is empty" in lines


def test_each_wait_of_set_aside_needs_a_partition_and_apply_adds_them() -> None:
    topics = declared()
    fewer = changed(as_declared(topics), "set-aside", partitions=3)
    (difference,) = compare_topics(topics.values(), fewer)
    assert difference.breaks_promise and "its own wait" in str(difference)
    assert safe_changes(topics.values(), fewer).partitions == {"set-aside": 7}
    (more,) = compare_topics(topics.values(), changed(as_declared(topics), "set-aside", partitions=9))
    assert not more.breaks_promise and "stay empty" in str(more)
