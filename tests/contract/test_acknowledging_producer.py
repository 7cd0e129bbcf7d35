"""The producer of the intake on a real Kafka: librdkafka's own fatal errors, one after the other.

`enable.gapless.guarantee` makes any record that the broker refuses for good the end of its producer, and a topic with a small
`max.message.bytes` refuses a large one.
"""

from __future__ import annotations

import asyncio
import logging
import os

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.config.models import KafkaConfig
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.producer import AcknowledgingProducer
from pipeline.operations.read_topic import read_topic

pytestmark = pytest.mark.anyio

TOPIC = "small-records"
DEATHS = 3


async def test_a_fatal_error_makes_a_new_producer_each_time(
    kafka: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.create_topics([NewTopic(TOPIC, 1, 1, config={"max.message.bytes": "1000"})])[TOPIC].result(30)
    config = KafkaConfig(bootstrap_servers=kafka.bootstrap_servers)
    producer = AcknowledgingProducer(config.model_copy(update={"client": {"enable.gapless.guarantee": True}}))
    loop = asyncio.get_running_loop()

    async def stored(value: bytes) -> bool:
        reported = loop.create_future()
        assert producer.send(TOPIC, value, b"k", [], reported.set_result)
        async with asyncio.timeout(20):
            return await reported

    with caplog.at_level(logging.ERROR):
        for life in range(DEATHS):
            assert await stored(b"before %d" % life)
            assert not await stored(os.urandom(5000))
            async with asyncio.timeout(20):
                while caplog.text.count("producer replaced") <= life:
                    await asyncio.sleep(0.01)
        assert await stored(b"after")
    await producer.close(10)
    values = [record.value() for record in read_topic(config, TOPIC)]
    assert values == [*(b"before %d" % life for life in range(DEATHS)), b"after"]
