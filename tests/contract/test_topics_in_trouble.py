"""Topics on a Kafka that loses requests, rejects them, or expires records."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from pipeline.config.models import Config
from pipeline.errors import BrokerUnavailable
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.offsets import Span, first_offsets_since, spans
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.kafka.watermarks import ClusterReader, Watermarks
from tests.kafka import LosingProxy, kafka_with
from tests.roles import free_admin_listen, wait_until, written

LIST_OFFSETS, METADATA, OFFSET_FETCH, FIND_COORDINATOR, CREATE_TOPICS, DESCRIBE_CONFIGS = 2, 3, 9, 10, 19, 32


def configured(servers: str, connections: dict[str, Any] | None = None, **sections: Any) -> Config:
    kafka = {"bootstrap_servers": servers, "partitions": 2, **sections.pop("kafka", {})}
    sections = {"admin": {"listen": free_admin_listen()}, **sections}
    return Config.model_validate(
        {"kafka": kafka, "connections": connections or {"a": {"destination": "Kafka"}}, **sections}
    )


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LosingProxy]:
    listen = f"127.0.0.1:{free_port()}"
    made = LosingProxy(listen)
    with kafka_with(tmp_path_factory.mktemp("k"), {"advertised.listeners": f"PLAINTEXT://{made.address}"}, listen):
        yield made
    made.close()


@pytest.mark.parametrize("lost", [METADATA, CREATE_TOPICS, DESCRIBE_CONFIGS])
def test_role_starts_despite_a_lost_request(proxy: LosingProxy, lost: int) -> None:
    config = configured(proxy.address, kafka={"topic_prefix": f"lost-{lost}-"})
    proxy.lose(lost)
    ensure_topics(config)
    assert proxy.lost == [lost]


@pytest.mark.parametrize(
    ("lost", "after"),
    [(METADATA, 0), (LIST_OFFSETS, 0), (LIST_OFFSETS, 1), (LIST_OFFSETS, 2), (FIND_COORDINATOR, 0), (OFFSET_FETCH, 0)],
)
def test_commands_succeed_despite_a_lost_request(proxy: LosingProxy, lost: int, after: int) -> None:
    config = configured(proxy.address, kafka={"topic_prefix": f"offsets-{lost}-{after}-"})
    ensure_topics(config)
    topic = TopicNames(config.kafka.topic_prefix).deliveries("a")
    producer = Producer({"bootstrap.servers": proxy.address})
    for number in range(4):
        producer.produce(topic, b"x", partition=number % 2)
    assert producer.flush(30) == 0
    cluster = ClusterReader(config.kafka)
    answers = {
        "spans": (lambda: spans(config.kafka, topic, committed=True), {0: Span(0, 2), 1: Span(0, 2)}),
        "times": (lambda: first_offsets_since(config.kafka, topic, 0), {0: 0, 1: 0}),
        "watermarks": (
            lambda: cluster.watermarks([topic]),
            {(topic, 0): Watermarks(0, 2, 2), (topic, 1): Watermarks(0, 2, 2)},
        ),
        "groups": (lambda: cluster.committed({"nobody": topic}), {"nobody": {}}),
    }
    hurt = False
    for name, (ask, expected) in answers.items():
        proxy.lose(lost, after)
        assert ask() == expected, name
        hurt |= bool(proxy.lost)
    assert hurt


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka with access control that allows operations without a rule."""
    authorizer = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with kafka_with(tmp_path_factory.mktemp("k"), authorizer) as broker:
        yield broker.bootstrap_servers


def allow(servers: str, kind: ResourceType, name: str, *operations: AclOperation) -> None:
    """Allow only these operations on this resource."""
    admin = AdminClient({"bootstrap.servers": servers})
    literal, permission = ResourcePatternType.LITERAL, AclPermissionType.ALLOW
    rules = [AclBinding(kind, name, literal, "User:ANONYMOUS", "*", operation, permission) for operation in operations]
    for future in admin.create_acls(rules).values():
        future.result(30)


def test_error_for_a_forbidden_topic_names_the_permission_to_grant(guarded: str, tmp_path: Path) -> None:
    config = configured(guarded)
    allow(
        guarded,
        ResourceType.BROKER,
        "kafka-cluster",
        *(AclOperation.ALTER, AclOperation.CLUSTER_ACTION, AclOperation.DESCRIBE, AclOperation.IDEMPOTENT_WRITE),
    )
    allow(guarded, ResourceType.TOPIC, "deliveries-a", AclOperation.DESCRIBE)
    role = [sys.executable, "-m", "pipeline", "route", "-c", str(written(config, tmp_path))]
    started = subprocess.run(role, capture_output=True, text=True, timeout=60, check=False)
    assert started.returncode == 69, started.stderr
    assert "topic deliveries-a cannot be created" in started.stderr
    tool = f"kafka-acls.sh --bootstrap-server {guarded} --add --allow-principal User:NAME"
    operations = "--operation Create --operation Describe --operation DescribeConfigs"
    assert f"{tool} {operations} --topic deliveries-a" in started.stderr
    assert "--create --topic deliveries-a --partitions 2" in started.stderr
    allow(guarded, ResourceType.TOPIC, "deliveries-a", AclOperation.CREATE)

    def needs_the_settings() -> bool:
        with pytest.raises(BrokerUnavailable) as caught:
            ensure_topics(config, patience_seconds=20)
        return "the settings of topic deliveries-a cannot be read" in str(caught.value)

    wait_until(needs_the_settings, "the permission to make the topic")
    allow(guarded, ResourceType.TOPIC, "deliveries-a", AclOperation.DESCRIBE_CONFIGS)
    wait_until(lambda: ensure_topics(config) is None, "the topics once all is granted")


def test_error_for_more_replicas_than_brokers_names_the_setting(guarded: str) -> None:
    config = configured(guarded, kafka={"replication_factor": 3, "topic_prefix": "wide-"})
    with pytest.raises(BrokerUnavailable, match=r"(?s)cannot be created: .*replication.*--replication-factor 3"):
        ensure_topics(config)


def test_retention_of_a_minute_deletes_older_records_under_traffic(tmp_path: Path) -> None:
    kept = dict.fromkeys(("hits_raw", "deliveries", "dead_letters", "ledger"), "1m")
    with kafka_with(tmp_path, {"log.retention.check.interval.ms": "500"}) as broker:
        config = configured(broker.bootstrap_servers, kafka={"retention": kept}, dedupe={"window": "1m"})
        ensure_topics(config)
        names = TopicNames("")
        on_writers_clock = (names.deliveries("a"), names.dead_letters, names.ledger)
        producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
        now_ms = round(time.time() * 1000)
        # Without a segment of its own the old record would stay as long as newer ones come.
        for written_ms in (now_ms - 600_000, now_ms + 600_000):
            for topic in on_writers_clock:
                producer.produce(topic, b"x", partition=0, timestamp=written_ms)
            assert producer.flush(30) == 0
        # On the broker's clock no record can be older than it is, not even one that claims to be.
        for topic in (names.hits_raw, names.seen_hits):
            producer.produce(topic, b"x", partition=0, timestamp=now_ms - 600_000)
        assert producer.flush(30) == 0
        for topic in on_writers_clock:
            wait_until(partial(_holds, config, topic, Span(1, 2)), f"{topic} without the old record")
        assert _holds(config, names.hits_raw, Span(0, 1)) and _holds(config, names.seen_hits, Span(0, 1))


def _holds(config: Config, topic: str, expected: Span) -> bool:
    return spans(config.kafka, topic, committed=False)[0] == expected
