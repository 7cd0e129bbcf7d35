"""Topics on a Kafka that loses requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.config.models import Config
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.offsets import Span, committed_offsets, first_offsets_since, spans
from pipeline.kafka.topics import TopicNames, ensure_topics
from tests.kafka import LosingProxy, kafka_with

LIST_OFFSETS, METADATA, OFFSET_FETCH, FIND_COORDINATOR = 2, 3, 9, 10


def configured(servers: str, connections: dict[str, Any] | None = None, **sections: Any) -> Config:
    kafka = {"bootstrap_servers": servers, "partitions": 2, **sections.pop("kafka", {})}
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


@pytest.mark.parametrize("lost", [METADATA, LIST_OFFSETS, FIND_COORDINATOR, OFFSET_FETCH])
def test_a_lost_request_does_not_cost_a_command_its_answer(proxy: LosingProxy, lost: int) -> None:
    config = configured(proxy.address, kafka={"topic_prefix": f"offsets-{lost}-"})
    ensure_topics(config)
    topic = TopicNames(config.kafka.topic_prefix).deliveries("a")
    proxy.lose(lost)
    assert spans(config.kafka, topic, committed=True) == {0: Span(0, 0), 1: Span(0, 0)}
    assert committed_offsets(config.kafka, "nobody", topic) == {}
    assert first_offsets_since(config.kafka, topic, 0) == {0: 0, 1: 0}
    assert proxy.lost == [lost]
