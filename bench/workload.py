"""The work that every contestant does: 1 KB hits, 10 % of them duplicates, three output topics, four partitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import Producer

from pipeline.config import Config, load_config
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames, ensure_topics

OUTPUTS = ("one", "two", "three")
PARTITIONS = 4
HIT_BYTES = 1024


COMPACT, SPACED = (",", ":"), (", ", ": ")
"""Separators of JSON: as browsers and most languages write it, and as Python's `json.dumps` does."""


def hit(number: int, separators: tuple[str, str] = COMPACT) -> tuple[bytes, bytes]:
    """Return key and value; every tenth repeats the one before it."""
    hit_id = f"hit-{number - 1 if number % 10 == 9 else number}"
    body: dict[str, Any] = {
        "hitId": hit_id,
        "sentAt": "2026-11-24T10:15:30.123Z",
        "event": {
            "name": "Completed Transaction",
            "user": {"userId": f"user-{number % 5000}", "anonymousId": "35009a79-1a05-49d7-b876-2b884d0f825b"},
            "payload": {f"property{index}": f"value of property {index}" for index in range(9)},
        },
        "context": {
            "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
            "page": {"url": "https://shop.example/checkout?utm_source=newsletter&utm_medium=email"},
        },
        "integrations": {"All": True},
    }
    body["event"]["text"] = ""
    body["event"]["text"] = "x" * (HIT_BYTES - len(json.dumps(body, separators=separators)))
    return f"shop/{hit_id}".encode(), json.dumps(body, separators=separators).encode()


def configure(folder: Path, servers: str, prefix: str, **sections: object) -> tuple[Path, Config]:
    """A configuration file with three Kafka connections, and its topics."""
    settings = {
        "kafka": {"bootstrap_servers": servers, "topic_prefix": prefix, "partitions": PARTITIONS},
        # What the others do, too: they derive nothing but the address. `stages` measures the rest.
        "enrich": {"user_agent": False, "campaign": False},
        "admin": {"listen": f"127.0.0.1:{free_port()}"},
        "projects": {"shop": {"tokens": ["token"]}},
        "connections": {name: {"destination": "Kafka"} for name in OUTPUTS},
        **sections,
    }
    file = folder / f"{prefix}hitrouter.yaml"
    file.write_text(yaml.safe_dump(settings))
    config = load_config(file)
    ensure_topics(config)
    return file, config


def preload(config: Config, hits: int, separators: tuple[str, str] = COMPACT) -> None:
    """Put `hits` records into hits-raw."""
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    producer = Producer(
        {
            "bootstrap.servers": config.kafka.servers,
            "linger.ms": 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    headers = [("project", b"shop"), ("received-at", b"1795515330123"), ("request-ip", b"203.0.113.9")]
    for number in range(hits):
        key, value = hit(number, separators)
        while True:
            try:
                producer.produce(topic, value, key, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()
