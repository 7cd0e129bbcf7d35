"""The seen store by itself: cost and memory per id, and a rebuild from blocks."""

from __future__ import annotations

import time

import numpy as np

from pipeline.codec.seen_block import decode_seen_block, encode_seen_block
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_store import SeenStore

_WINDOW_MS = 86_400_000
_BATCH = 500


def measure_stores(ids: int = 1_000_000) -> dict[str, float]:
    """CPU-microseconds per classified hit, bytes per id, longest batch in ms, CPU-seconds of a rebuild of `ids`."""
    draw = np.random.default_rng(1)
    digests = draw.bytes(16 * ids)
    deduplicator = Deduplicator()
    deduplicator.install({0: SeenStore(_WINDOW_MS)})
    longest = 0.0
    began = time.process_time()
    for start in range(0, ids, _BATCH):
        batch_began = time.perf_counter()
        batch = [digests[16 * index : 16 * index + 16] for index in range(start, start + _BATCH)]
        claim = deduplicator.claim()
        deduplicator.classify(claim, 0, batch, [start] * _BATCH)
        claim.commit()
        longest = max(longest, time.perf_counter() - batch_began)
    spent = time.process_time() - began
    blocks = [
        encode_seen_block(digests[16 * start : 16 * (start + _BATCH)], start, start) for start in range(0, ids, _BATCH)
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
