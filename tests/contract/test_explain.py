"""`explain` on a real Kafka: hits with and without a project, without secrets of the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from confluent_kafka import Message

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import RAW_HIT_SCHEMA
from pipeline.config.models import Config, KafkaConfig
from pipeline.kafka.topics import TopicNames, ensure_topics
from pipeline.operations import raw_records_of_hit
from pipeline.operations.explain import explain
from pipeline.operations.ledger import read_ledger
from pipeline.operations.read_topic import read_topic
from tests.roles import dead, delete_below, delivered, hit, ids, put, running, wait_until, written

MakeConfig = Callable[..., Config]
JSON = {"Content-Type": "application/json"}


def told(config: Config, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the variables of the file."""
    file = written(config, folder, "cli.yaml")
    data = yaml.safe_load(file.read_text())
    data["projects"]["shop"]["tokens"] = ["${NOT_SET_TOKEN}"]
    data["connections"]["crm"] = {"destination": "Webhook", "settings": {"url": "${NOT_SET_URL}"}, "events": ["Never"]}
    file.write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "pipeline", *arguments, "-c", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ})


def test_hit_without_project_is_found_with_its_dead_letter(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"a": {"destination": "Kafka"}, "crm": {"destination": "Kafka"}})
    avro = {"hit": hit("in-avro"), "project": "shpo", "received_at": None, "request_ip": None, "user_agent": None}
    with running("route", config, tmp_path):
        put(config, hit("wrong"), project="shopp")
        put(config, hit("missing"), project=None)
        put(config, b"no JSON", project="shopp", key=b"shopp/by-key")
        put(config, Framing(RAW_HIT_SCHEMA).encode(avro), project=None)
        put(config, hit("wrong"), project="shop")
        wait_until(lambda: len(dead(config)) == 4, "four dead letters")
        wrong = told(config, tmp_path, "explain", "wrong")
        assert wrong.returncode == 0, wrong.stderr
        assert "wrong of shop, by a secret door\n" in wrong.stdout
        assert "wrong whose header `project` names 'shopp'; did you mean 'shop'?" in wrong.stdout
        assert wrong.stdout.count("dead letter") == 2  # at its record, and in a line with the reason
        assert "unknown_project: the header `project` names no project of the configuration" in wrong.stdout
        for hit_id, why in (
            ("missing", "without the header `project`"),
            ("by-key", "names 'shopp'"),
            ("in-avro", "without the header `project`"),
        ):
            assert why in told(config, tmp_path, "explain", hit_id).stdout
        assert "names 'shopp'" not in told(config, tmp_path, "explain", "wrong", "--project", "shop").stdout
        gone = told(config, tmp_path, "explain", "nowhere")
        assert gone.returncode == 1 and "no topic has the hit nowhere" in gone.stderr
        for command in (
            ["ledger"],
            ["dead-letters", "list"],
            ["topics"],
            ["tail", "--limit", "1", "--connection", "none"],
        ):
            assert "NOT_SET" not in told(config, tmp_path, *command).stderr
        assert "NOT_SET_TOKEN is not set" in told(config, tmp_path, "validate").stderr


def test_public_and_secret_hit_with_one_id_are_both_explained(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        {"a": {"destination": "Kafka"}, "servers": {"destination": "Kafka", "when": 'door == "secret"'}}
    )
    address = f"http://{config.intake.listen}"
    page = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
    with running("route", config, tmp_path), running("intake", config, tmp_path):
        garbage = json.loads(hit("order-1", event={"name": "garbage", "user": {"anonymousId": "x"}}))
        for _ in range(2):
            sent = httpx.post(f"{address}/collect", content=json.dumps(garbage | {"projectId": "shop"}), headers=page)
            assert sent.status_code == 204
        wait_until(lambda: ids(config, "a") == ["order-1"], "the garbage")
        for _ in range(2):
            sent = httpx.post(f"{address}/track", content=hit("order-1"), headers=JSON, auth=("shop-token", ""))
            assert sent.status_code == 204
        wait_until(lambda: read_ledger(config).hits.received == 4, "four hits received")
    hits = read_ledger(config).hits
    assert (hits.unique, hits.duplicates, hits.conflicting, hits.adds_up) == (2, 2, 0, True)
    assert [(routed.get("door"), routed["hitId"]) for routed in delivered(config, "servers")] == [(None, "order-1")]
    told_both = told(config, tmp_path, "explain", "order-1", "--json")
    secret, public = map(json.loads, told_both.stdout.splitlines())
    assert (secret["door"], public["door"]) == ("secret", "public")
    for hit_trace, endpoint, states in (
        (secret, "/track", {"a": "on its topic", "servers": "on its topic"}),
        (public, "/collect", {"a": "on its topic", "servers": "filtered: when_false"}),
    ):
        assert [received["endpoint"] for received in hit_trace["received"]] == [endpoint] * 2
        assert [received["note"].partition(":")[0] for received in hit_trace["received"]] == [
            "the first with this id",
            "a duplicate",
        ]
        assert {
            trace["name"]: trace["state"] for trace in hit_trace["connections"] if trace["name"] in states
        } == states
        (at,) = (trace["details"] for trace in hit_trace["connections"] if trace["name"] == "a")
        assert len(at) == 1, "each has its own record on the topic"


def test_hit_that_the_router_has_not_read_is_found(make_config: MakeConfig) -> None:
    config = make_config()
    ensure_topics(config)
    put(config, hit("early"), project="nobody")
    (hit_trace,) = explain(config, "early")
    assert hit_trace.unowned.startswith("whose header `project` names 'nobody'")
    assert [received.note for received in hit_trace.received] == ["no dead letter yet: the router has not read it"]


def test_removed_project_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"a": {"destination": "Kafka"}})
    with running("route", config, tmp_path):
        put(config, hit("left", event="none"), project="blog")
        wait_until(lambda: len(dead(config)) == 1, "the dead letter")
    config = config.model_copy(update={"projects": {"shop": config.projects["shop"]}})
    (hit_trace,) = explain(config, "left")
    assert "'blog'" in hit_trace.unowned and [letter.reason for letter in hit_trace.dead] == ["invalid_hit"]


def test_removed_connection_that_still_holds_the_hit_is_shown(make_config: MakeConfig, tmp_path: Path) -> None:
    webhook = {
        "destination": "Webhook",
        "settings": {"url": "http://127.0.0.1:1/"},
        "delivery": {"allow_private": True},
    }
    config = make_config({"a": {"destination": "Kafka"}, "late": webhook})
    with running("route", config, tmp_path):
        put(config, hit("held"), project="shop")
        wait_until(lambda: ids(config, "late") == ["held"], "the routed hit")
    config = config.model_copy(update={"connections": {"a": config.connections["a"]}})
    (hit_trace,) = explain(config, "held")
    assert [(trace.connection, trace.state) for trace in hit_trace.connection_traces] == [
        ("a", "on its topic"),
        ("late", "not in the file: pending, not delivered by any worker"),
    ]


def test_hits_that_expired_before_routing_are_mentioned(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    ensure_topics(config)
    put(config, hit("gone"), hit("gone-too"), project="shop")
    delete_below(config, TopicNames(config.kafka.topic_prefix).hits_raw, dict.fromkeys(range(4), -1))
    found = told(config, tmp_path, "explain", "gone")
    assert (
        found.returncode == 1
        and "retention has deleted up to 2 hits of hits-raw before a router read them" in found.stderr
    )


def test_hits_raw_is_read_once_for_all_projects(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    ensure_topics(config)
    for project in ("shop", "blog", "nobody"):
        put(config, hit("everywhere"), project=project)
    put(config, hit('q"uoted'), project="shop")
    read: list[str] = []

    def counted(kafka: KafkaConfig, topic: str) -> Iterator[Message]:
        read.append(topic)
        return read_topic(kafka, topic)

    monkeypatch.setattr(raw_records_of_hit, "read_topic", counted)
    assert [hit_trace.project for hit_trace in explain(config, "everywhere")] == ["shop", "blog", "nobody"]
    assert len(read) == 1
    assert [hit_trace.project for hit_trace in explain(config, 'q"uoted')] == ["shop"], "its JSON has a backslash"
