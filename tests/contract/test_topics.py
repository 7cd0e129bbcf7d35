"""Creating, comparing and changing topics on a real Kafka with `hitrouter topics`."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from pipeline.config.models import Config
from pipeline.errors import TopicMismatch
from pipeline.kafka.topics import TopicNames, ensure_topics, topic_retention_ms
from tests.roles import hit, ids, put, running, wait_until, written

MakeConfig = Callable[..., Config]
DAY_MS = 86_400_000


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """A configuration whose topics exist as declared."""
    made = make_config({"a": {"destination": "Kafka"}})
    ensure_topics(made)
    return made


def admin_of(config: Config) -> AdminClient:
    return AdminClient({"bootstrap.servers": config.kafka.servers})


def names_of(config: Config) -> TopicNames:
    return TopicNames(config.kafka.topic_prefix)


def alter(config: Config, topic: str, settings: Mapping[str, str]) -> None:
    changes = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in settings.items()]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=changes)
    admin = admin_of(config)  # keeps the client alive until the response
    admin.incremental_alter_configs([resource])[resource].result(30)

    def in_effect() -> bool:
        (described,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        return all(described.result(30)[name].value == value for name, value in settings.items())

    wait_until(in_effect, f"{topic} with {settings}")


def widen(config: Config, topic: str, partitions: int) -> None:
    admin = admin_of(config)
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)
    wait_until(lambda: partitions_of(config, topic) == partitions, f"{topic} with {partitions} partitions")


def partitions_of(config: Config, topic: str) -> int:
    return len(admin_of(config).list_topics(timeout=20).topics[topic].partitions)


def with_sections(config: Config, **sections: Any) -> Config:
    """Return `config` with other values, as from a changed file."""
    dumped = config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    for name, section in sections.items():
        dumped[name] = {**dumped.get(name, {}), **section}
    return Config.model_validate(dumped)


def topics(config: Config, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "topics",
        *arguments,
        "-c",
        str(written(config, folder, "topics.yaml")),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_longer_retention_is_logged_once_and_applied(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = with_sections(config, kafka={"retention": {"deliveries": "14d"}})
    caplog.set_level(logging.WARNING)
    ensure_topics(longer)
    ensure_topics(longer)
    topic = names_of(config).deliveries("a")
    reported = [
        r.getMessage() for r in caplog.records if r.name == "pipeline.kafka.topics.ensure" and topic in r.getMessage()
    ]
    assert len([line for line in reported if "retention.ms is 7 d, declared 14 d" in line]) == 1, reported
    shown = topics(longer, tmp_path)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "retention.ms is 7 d, declared 14 d: records expire sooner than declared" in shown.stdout
    assert "    hitrouter topics --apply\n" in shown.stdout
    applied = topics(longer, tmp_path, "--apply")
    assert applied.returncode == 0
    assert f"changed {topic}: retention.ms 7 d -> 14 d" in applied.stdout
    assert topic_retention_ms(config.kafka, [topic]) == {topic: 14 * DAY_MS}
    assert "as declared" in topics(longer, tmp_path).stdout


def test_shorter_retention_is_not_applied_but_shown_as_a_command(config: Config, tmp_path: Path) -> None:
    connection = {"destination": "Kafka", "retention": "1h"}
    shorter = with_sections(config, connections={"a": connection})
    ensure_topics(shorter)
    topic = names_of(config).deliveries("a")
    done = topics(shorter, tmp_path, "--apply")
    assert done.returncode == 0
    assert f"--entity-name {topic} --add-config retention.ms=3600000" in done.stdout
    assert topic_retention_ms(config.kafka, [topic]) == {topic: 7 * DAY_MS}


@pytest.mark.parametrize(
    ("topic", "settings", "command"),
    [
        ("deliveries-a", {"cleanup.policy": "compact"}, "--add-config cleanup.policy=delete"),
        ("hits-raw", {"message.timestamp.type": "CreateTime"}, "--add-config message.timestamp.type=LogAppendTime"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_setting_that_breaks_the_guarantee_refuses_the_start_with_a_command(
    config: Config, tmp_path: Path, topic: str, settings: dict[str, str], command: str
) -> None:
    name = config.kafka.topic_prefix + topic
    alter(config, name, settings)
    expected = f"kafka-configs.sh --bootstrap-server {config.kafka.servers} --alter --entity-type topics --entity-name {name} {command}"
    with pytest.raises(TopicMismatch) as caught:
        ensure_topics(config)
    assert expected in str(caught.value)
    assert str(caught.value).count("kafka.apache.org/downloads") == 1
    shown = topics(config, tmp_path)
    assert shown.stdout.count("kafka.apache.org/downloads") == 1
    assert shown.returncode == 1
    assert f"BREAKS THE GUARANTEE: {name}: {next(iter(settings))} is" in shown.stdout


def test_retention_of_seen_hits_below_the_window_is_fixed_by_apply(config: Config, tmp_path: Path) -> None:
    alter(config, names_of(config).seen_hits, {"retention.ms": "3600000"})
    with pytest.raises(TopicMismatch) as caught:
        ensure_topics(config)
    assert "    hitrouter topics --apply" in str(caught.value) and "kafka-configs.sh" not in str(caught.value)
    assert topics(config, tmp_path, "--apply").returncode == 0
    ensure_topics(config)


def test_roles_exit_with_1_on_topics_that_break_the_guarantee(config: Config, tmp_path: Path) -> None:
    alter(config, names_of(config).hits_raw, {"message.timestamp.type": "CreateTime"})
    for role in ("intake", "route", "deliver"):
        command = [sys.executable, "-m", "pipeline", role, "-c", str(written(config, tmp_path))]
        started = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert started.returncode == 1, started.stderr
        assert "--add-config message.timestamp.type=LogAppendTime" in started.stderr
        assert "Traceback" not in started.stderr


def test_fewer_partitions_of_hits_raw_refuse_the_start_with_a_command(config: Config, tmp_path: Path) -> None:
    wider = with_sections(config, kafka={"partitions": 8})
    with pytest.raises(TopicMismatch) as caught:
        ensure_topics(wider)
    names, message = names_of(config), str(caught.value)
    assert f"--alter --topic {names.hits_raw} --partitions 8" in message
    assert topics(wider, tmp_path).returncode == 1
    grown = topics(wider, tmp_path, "--partitions", "8")
    assert grown.returncode == 0, grown.stdout
    ensure_topics(wider)
    shown = topics(wider, tmp_path).stdout
    assert "differs" in shown and "    hitrouter topics --connection a --partitions 8\n" in shown
    assert "kafka-topics.sh" not in shown and f"{names.dead_letters}: partitions" not in shown
    assert "(declared 8)" not in next(line for line in shown.splitlines() if line.startswith(names.dead_letters))
    assert topics(wider, tmp_path, "--connection", "a", "--partitions", "8").returncode == 0
    assert "differs" not in topics(wider, tmp_path).stdout


def test_roles_start_with_more_partitions_than_declared(config: Config, tmp_path: Path) -> None:
    names = names_of(config)
    for topic in (names.seen_hits, names.hits_raw, names.deliveries("a")):
        widen(config, topic, 6)
    ensure_topics(config)
    shown = topics(config, tmp_path)
    assert shown.returncode == 0
    assert "set kafka.partitions: 6 in the file" in shown.stdout
    assert "set connections.a.partitions: 6 in the file" in shown.stdout


def test_missing_partitions_of_seen_hits_are_added_by_apply(config: Config, tmp_path: Path) -> None:
    """Roles still start: a router adds the partitions of seen-hits before it reads hits-raw."""
    names = names_of(config)
    widen(config, names.hits_raw, 6)
    ensure_topics(config)
    done = topics(config, tmp_path, "--apply")
    assert done.returncode == 0 and f"widened {names.seen_hits}: partitions 4 -> 6" in done.stdout
    ensure_topics(config)


def test_partitions_grow_and_never_shrink(config: Config, tmp_path: Path) -> None:
    names = names_of(config)
    done = topics(config, tmp_path, "--partitions", "6")
    assert done.returncode == 0, done.stderr
    first, second = (f"widened {name}: partitions 4 -> 6" for name in (names.seen_hits, names.hits_raw))
    assert done.stdout.index(first) < done.stdout.index(second)
    assert "set kafka.partitions: 6 in the file" in done.stdout
    assert partitions_of(config, names.deliveries("a")) == 4
    again = topics(config, tmp_path, "--partitions", "6")
    assert again.returncode == 0 and f"{names.hits_raw} already has 6 partitions. Next: set" in again.stdout
    less = topics(config, tmp_path, "--partitions", "5")
    assert less.returncode == 2
    assert f"{names.hits_raw} has 6 partitions, and Kafka cannot remove partitions" in less.stderr
    one = topics(config, tmp_path, "--partitions", "5", "--connection", "a")
    assert one.returncode == 0 and "set connections.a.partitions: 5 in the file" in one.stdout
    assert partitions_of(config, names.deliveries("a")) == 5
    assert partitions_of(config, names.hits_raw) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--apply", "--partitions", "8"), "cannot be combined"),
        (("--connection", "a"), "--connection needs --partitions"),
        (("--partitions", "8", "--connection", "b"), "unknown connection; the connections are: a"),
        (("--partitions", "0"), "not in the range"),
    ],
)
def test_invalid_options_are_refused(
    make_config: MakeConfig, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = topics(make_config({"a": {"destination": "Kafka"}}), tmp_path, *arguments)
    assert done.returncode == 2 and said in " ".join(done.stderr.split())


def test_missing_topics_are_shown_and_created_without_secrets(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"a": {"destination": "Kafka"}}, projects={"shop": {"tokens": ["${A_TOKEN_THAT_IS_NOT_SET}"]}})
    shown = topics(config, tmp_path)
    assert shown.returncode == 1 and "missing topics: 6" in shown.stdout
    grown = topics(config, tmp_path, "--partitions", "8")
    assert grown.returncode == 1 and "run `hitrouter topics --apply` to create them" in grown.stderr
    done = topics(config, tmp_path, "--apply", "--json")
    assert done.returncode == 0, done.stderr
    assert f"created {names_of(config).hits_raw}" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"] and len(answer["done"]) == 6
    assert {topic["state"] for topic in answer["topics"]} == {"as declared"}


def test_json_contains_each_difference(config: Config, tmp_path: Path) -> None:
    topic = names_of(config).deliveries("a")
    alter(config, topic, {"cleanup.policy": "compact", "retention.ms": "3600000"})
    done = topics(config, tmp_path, "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert not answer["ok"]
    (found,) = (entry for entry in answer["topics"] if entry["topic"] == topic)
    assert (found["state"], found["declared"]["partitions"], found["actual"]["partitions"]) == (
        "breaks the guarantee",
        4,
        4,
    )
    policy, kept = sorted(found["differences"], key=lambda difference: difference["setting"])
    assert (policy["setting"], policy["severity"], policy["actual"]) == ("cleanup.policy", "breaks_promise", "compact")
    assert (kept["setting"], kept["severity"], kept["declared"]) == ("retention.ms", "reported", "604800000")
    assert kept["mend"] == ["hitrouter topics --apply"]
    assert "cleanup.policy=delete" in policy["mend"][0]


def test_topics_of_removed_connections_are_listed_with_their_backlog(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        {
            "gone": {"destination": "Files", "settings": {"path": str(tmp_path / "files"), "format": "jsonl"}},
            "unread": {"destination": "Kafka"},
        }
    )
    with running("route", config, tmp_path), running("deliver", config, tmp_path) as deliver:
        put(config, hit("1"), hit("2"))
        names = names_of(config)
        wait_until(lambda: any((tmp_path / "files").glob("*.jsonl")), "a file")
        deliver.stop()
        put(config, hit("3"))
        wait_until(lambda: len(ids(config, "gone")) == 3, "the routed hits")
    left = with_sections(config, projects={})
    left = left.model_copy(update={"connections": {}})
    shown = topics(left, tmp_path)
    assert shown.returncode == 0
    assert f"{names.deliveries('gone')}: connection gone is not in the file; " in shown.stdout
    assert "not in the file; at most " in shown.stdout
    assert "hits are not delivered, and expire after the retention" in shown.stdout
    assert (
        f"{names.deliveries('unread')}: connection unread is not in the file; its topic holds at most" in shown.stdout
    )
    assert shown.stdout.split("\n", 1)[0].split() == [
        "topic",
        "partitions",
        "replicas",
        "retention",
        "offsets",
        "state",
    ]
    answer = json.loads(topics(left, tmp_path, "--json").stdout)
    assert all(entry["offsets"] >= 0 and "records" not in entry for entry in answer["topics"])
    backlog = {entry["topic"]: entry["backlog"] for entry in answer["topics"] if entry["state"] == "not in the file"}
    assert backlog[names.deliveries("gone")] >= 1 and backlog[names.deliveries("unread")] is None


def test_retention_in_effect_is_read(config: Config) -> None:
    names = names_of(config)
    forever = f"{names.prefix}forever"
    admin = admin_of(config)
    admin.create_topics([NewTopic(forever, 1, 1, config={"retention.ms": "-1"})])[forever].result(30)
    asked = [names.hits_raw, names.deliveries("a"), forever, f"{names.prefix}none"]
    expected = {names.hits_raw: 7 * DAY_MS, names.deliveries("a"): 7 * DAY_MS, forever: None}
    wait_until(lambda: topic_retention_ms(config.kafka, asked) == expected, "the new topics with their retention")


def test_roles_that_start_together_create_the_topics_once(make_config: MakeConfig) -> None:
    connections = {f"c{number}": {"destination": "Kafka"} for number in range(20)}
    config = make_config(connections)
    failures: list[BaseException] = []

    def start() -> None:
        try:
            ensure_topics(config)
        except BaseException as error:
            failures.append(error)

    roles = [threading.Thread(target=start) for _ in range(5)]
    for role in roles:
        role.start()
    for role in roles:
        role.join(120)
    assert failures == []
    assert len(topic_retention_ms(config.kafka, [names_of(config).deliveries(name) for name in connections])) == 20
