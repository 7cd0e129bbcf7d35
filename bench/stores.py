"""The seen store by itself: cost and memory per id, and a rebuild from blocks."""

from __future__ import annotations

import time

import numpy as np
from confluent_kafka import Producer

from pipeline.codec.seen_block import as_hashes, as_marks, decode_seen_block, encode_seen_block
from pipeline.config import Config
from pipeline.kafka.topics import TopicNames
from pipeline.router.seen_hits import read_seen_hits
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_rebuild import SeenRebuild
from pipeline.stages.seen_store import SeenStore

_WINDOW_MS = 86_400_000
_BATCH = 500


def fill_seen_hits(config: Config, ids: int, written_under: int, block_ids: int = _BATCH) -> None:
    """Write `ids` random ids in blocks, as workers do that share `written_under` partitions."""
    topic = TopicNames(config.kafka.topic_prefix).seen_hits
    producer = Producer(
        {"bootstrap.servers": config.kafka.servers, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000}
    )
    draw = np.random.default_rng(2)
    now_ms = round(time.time() * 1000)
    marks = as_marks([1] * block_ids)
    for number in range(ids // block_ids):
        partition = number % written_under
        # Hashes that fall into this partition.
        hashes = draw.integers(0, 2**32 // written_under - 1, block_ids, dtype=np.uint32) * written_under + partition
        digests = draw.bytes(16 * block_ids)
        block = encode_seen_block(digests, hashes.astype("<u4"), marks, now_ms, now_ms, written_under)
        while True:
            try:
                producer.produce(topic, block, partition=partition)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()


def measure_rebuild(config: Config, ids: int = 1_000_000) -> float:
    """CPU-seconds to rebuild `ids` ids from the blocks on a real Kafka, with the reading of the topic."""
    partitions = config.kafka.partitions
    fill_seen_hits(config, ids, partitions)
    began = time.process_time()
    stores = read_seen_hits(
        config, TopicNames(config.kafka.topic_prefix).seen_hits, list(range(partitions)), partitions
    ).finish()
    spent = time.process_time() - began
    assert sum(map(len, stores.values())) == ids
    return spent


def measure_stores(ids: int = 1_000_000) -> dict[str, float]:
    """CPU-microseconds per classified hit, bytes per id, longest batch in ms, CPU-seconds of a rebuild of `ids`."""
    draw = np.random.default_rng(1)
    digests = draw.bytes(16 * ids)
    deduplicator = Deduplicator()
    deduplicator.install({0: SeenStore(_WINDOW_MS)}, 1)
    longest = 0.0
    key_hashes, marks = [1] * _BATCH, [1] * _BATCH
    began = time.process_time()
    for start in range(0, ids, _BATCH):
        batch_began = time.perf_counter()
        batch = [digests[16 * index : 16 * index + 16] for index in range(start, start + _BATCH)]
        claim = deduplicator.claim()
        deduplicator.classify(claim, 0, batch, key_hashes, marks, [start] * _BATCH)
        claim.commit()
        longest = max(longest, time.perf_counter() - batch_began)
    spent = time.process_time() - began
    blocks = [
        encode_seen_block(
            digests[16 * start : 16 * (start + _BATCH)], as_hashes(key_hashes), as_marks(marks), start, start, 1
        )
        for start in range(0, ids, _BATCH)
    ]
    rebuilt = SeenRebuild(_WINDOW_MS, [0], 1)
    began = time.process_time()
    for block in blocks:
        rebuilt.add(0, decode_seen_block(block))
    (store,) = rebuilt.finish().values()
    rebuild = time.process_time() - began
    assert len(store) == ids
    return {
        "cpu_us_per_hit": spent / ids * 1e6,
        "bytes_per_id": deduplicator.stores[0].memory_bytes / ids,
        "longest_batch_ms": longest * 1e3,
        "rebuild_cpu_seconds": rebuild,
    }
