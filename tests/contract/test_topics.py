"""Topics on a real Kafka: made, compared, changed."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames, ensure_topics, topic_retention_ms
from tests.roles import wait_until

MakeConfig = Callable[..., Config]


def test_the_retention_in_effect_is_read(make_config: MakeConfig) -> None:
    config = make_config({"a": {"destination": "Kafka"}})
    ensure_topics(config)
    names = TopicNames(config.kafka.topic_prefix)
    forever = f"{names.prefix}forever"
    admin = AdminClient({"bootstrap.servers": config.kafka.servers})
    admin.create_topics([NewTopic(forever, 1, 1, config={"retention.ms": "-1"})])[forever].result(30)
    asked = [names.hits_raw, names.deliveries("a"), forever, f"{names.prefix}none"]
    expected = {names.hits_raw: 604_800_000, names.deliveries("a"): 604_800_000, forever: None}
    wait_until(lambda: topic_retention_ms(config.kafka, asked) == expected, "the new topics with their retention")
