"""Reads all topics of a run from the start, committed and uncommitted."""

from __future__ import annotations

import time

from pipeline.config.models import Config
from pipeline.kafka.offsets import end_offsets
from pipeline.kafka.topics import TopicNames
from pipeline.operations.ledger import read_ledger
from pipeline.operations.read_topic import read_topic
from tests.faults.checker import Found


def wait_until_routed(config: Config, deadline_seconds: float) -> bool:
    """Wait until the router has committed every record of hits-raw. Return False after `deadline_seconds`."""
    names = TopicNames(config.kafka.topic_prefix)
    deadline = time.monotonic() + deadline_seconds
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": config.kafka.servers, "group.id": f"{names.prefix}route", "log_level": 0})
    try:
        while time.monotonic() < deadline:
            ends = end_offsets(config.kafka, names.hits_raw, committed=False)
            asked = [TopicPartition(names.hits_raw, partition) for partition in ends]
            committed = {tp.partition: tp.offset for tp in consumer.committed(asked, timeout=30)}
            # The marker at the end of a transaction has an offset, too, but is never consumed.
            if all(committed[partition] >= end - 1 for partition, end in ends.items()):
                return True
            time.sleep(0.5)
        return False
    finally:
        consumer.close()


def read_found(config: Config) -> tuple[Found, int]:
    """Return the content of the topics, and the number of records of aborted transactions."""
    names = TopicNames(config.kafka.topic_prefix)
    deliveries = {}
    aborted = 0
    for connection in config.connections:
        topic = names.deliveries(connection)
        deliveries[connection] = [record.value() or b"" for record in read_topic(config.kafka, topic)]
        aborted += sum(1 for _ in read_topic(config.kafka, topic, committed=False)) - len(deliveries[connection])
    ledger = read_ledger(config)
    found = Found(
        deliveries,
        [record.value() or b"" for record in read_topic(config.kafka, names.dead_letters)],
        {name: sums.routed for name, sums in ledger.connections.items()},
        ledger.hits.dead,
        ledger.problems,
    )
    return found, aborted
