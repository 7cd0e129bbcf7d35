"""(b) A plain confluent-kafka loop: the same stages, batches and transactions as ours, without Faust and without threads.

python -m bench.plain_loop FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from faust.types import TP

from pipeline.config import load_config
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.transport.batch import Batch, Outputs
from pipeline.kafka.transport.settings import TransportSettings
from pipeline.router.prepare import Preparer
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_store import SeenStore


def main() -> None:
    """Until killed."""
    config = load_config(Path(sys.argv[1]))
    names = TopicNames(config.kafka.topic_prefix)
    settings = TransportSettings(config.kafka, f"{names.prefix}route")
    deduplicator = Deduplicator()
    window_ms = int(config.dedupe.window * 1000)
    partitions = config.kafka.partitions
    deduplicator.install({partition: SeenStore(window_ms) for partition in range(partitions)}, partitions)
    preparer = Preparer(config, deduplicator)
    producer = TransactionalProducer(config.kafka, settings.transactional_id)
    producer.initialise()
    consumer = Consumer(settings.consumer_properties())
    consumer.subscribe([names.hits_raw])
    while True:
        first = consumer.poll(0.25)
        if first is None or first.error() is not None:
            continue
        messages = [first, *consumer.consume(settings.batch_records - 1, settings.linger_seconds)]
        records: dict[TP, list[object]] = {}
        for message in messages:
            if message.error() is None:
                records.setdefault(TP(message.topic(), message.partition()), []).append(message)
        ends = {tp: part[-1].offset() + 1 for tp, part in records.items()}
        work = preparer.prepare(Batch(0, records, ends))
        outputs = Outputs(producer)
        producer.begin()
        work.write(outputs)
        offsets = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in ends.items()]
        producer.commit(offsets, consumer.consumer_group_metadata())
        for action in outputs.committed:
            action()


if __name__ == "__main__":
    main()
