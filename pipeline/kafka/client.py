"""The librdkafka properties that every client of ours shares."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaException, Producer

from pipeline.config.models import KafkaConfig


def client_properties(kafka: KafkaConfig, **properties: Any) -> dict[str, Any]:
    """Properties for one client: ours, then `properties` (dots as `__`), then the operator's `kafka.client`."""
    base: dict[str, Any] = {
        "bootstrap.servers": kafka.servers,
        "log.connection.close": False,
        "socket.keepalive.enable": True,
        # A broker that is back after a restart is found again at once.
        "reconnect.backoff.ms": 200,
        "reconnect.backoff.max.ms": 1000,
    }
    return base | {key.replace("__", "."): value for key, value in properties.items()} | kafka.client


def reaches_kafka(producer: Producer) -> bool:
    """Does a broker answer within a second? May be called from any thread while another call blocks."""
    try:
        producer.list_topics(timeout=1.0)
    except KafkaException:
        return False
    return True
