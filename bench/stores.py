"""The seen store by itself: cost and memory per id, and a rebuild from blocks."""

from __future__ import annotations

import time

import numpy as np
from confluent_kafka import Producer

from pipeline.codec.seen_block import as_marks, decode_seen_block, encode_seen_block
from pipeline.config import Config
from pipeline.kafka.topics import TopicNames
from pipeline.router.seen_hits import rebuild_stores
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_store import SeenStore

_WINDOW_MS = 86_400_000
_BATCH = 500


def measure_rebuild(config: Config, ids: int = 1_000_000) -> float:
    """CPU-seconds to rebuild `ids` ids from the blocks on a real Kafka, with the reading of the topic."""
    topic = TopicNames(config.kafka.topic_prefix).seen_hits
    partitions = config.kafka.partitions
    producer = Producer({"bootstrap.servers": config.kafka.servers, "linger.ms": 20})
    digests = np.random.default_rng(2).bytes(16 * ids)
    marks = as_marks([1] * _BATCH)
    now_ms = round(time.time() * 1000)
    for number, start in enumerate(range(0, ids, _BATCH)):
        block = encode_seen_block(digests[16 * start : 16 * (start + _BATCH)], marks, now_ms, now_ms)
        producer.produce(topic, block, partition=number % partitions)
        producer.poll(0)
    producer.flush()
    began = time.process_time()
    stores = rebuild_stores(config, topic, list(range(partitions)))
    spent = time.process_time() - began
    assert sum(map(len, stores.values())) == ids
    return spent


def measure_stores(ids: int = 1_000_000) -> dict[str, float]:
    """CPU-microseconds per classified hit, bytes per id, longest batch in ms, CPU-seconds of a rebuild of `ids`."""
    draw = np.random.default_rng(1)
    digests = draw.bytes(16 * ids)
    deduplicator = Deduplicator()
    deduplicator.install({0: SeenStore(_WINDOW_MS)})
    longest = 0.0
    marks = [1] * _BATCH
    began = time.process_time()
    for start in range(0, ids, _BATCH):
        batch_began = time.perf_counter()
        batch = [digests[16 * index : 16 * index + 16] for index in range(start, start + _BATCH)]
        claim = deduplicator.claim()
        deduplicator.classify(claim, 0, batch, marks, [start] * _BATCH)
        claim.commit()
        longest = max(longest, time.perf_counter() - batch_began)
    spent = time.process_time() - began
    blocks = [
        encode_seen_block(digests[16 * start : 16 * (start + _BATCH)], as_marks(marks), start, start)
        for start in range(0, ids, _BATCH)
    ]
    rebuilt = SeenStore(_WINDOW_MS)
    began = time.process_time()
    for block in blocks:
        rebuilt.add_block(decode_seen_block(block))
    rebuild = time.process_time() - began
    assert len(rebuilt) == ids
    return {
        "cpu_us_per_hit": spent / ids * 1e6,
        "bytes_per_id": deduplicator.stores[0].memory_bytes / ids,
        "longest_batch_ms": longest * 1e3,
        "rebuild_cpu_seconds": rebuild,
    }
