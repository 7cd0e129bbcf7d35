"""Deduplication: the first record with an id wins, also after a crash (contract.md, section 5).

In-memory state follows Kafka's. The ids that a batch accepts are a `Claim`. Later batches see it at once, but it enters the seen
store only after the batch's transaction has committed. If the transaction aborts, the claim is discarded, and the records are
read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from itertools import groupby
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.codec.seen_block import ID_BYTES, UNMARKED, Hashes, Marks, as_hashes, as_ids, as_marks
from pipeline.stages.classify import RawHit
from pipeline.stages.id_table import ABSENT
from pipeline.stages.seen_store import SeenStore


class DedupeResult(Enum):
    """The result for one record. CONFLICTING is a duplicate with other content than the first record."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICTING = "conflicting"


SECRET, PUBLIC, GENERATED, REPLAY = b"", b"public", b"generated", b"replay"
"""Namespaces of ids, used as `person` of blake2b, so that ids of different namespaces never collide."""


_HASHERS = {name: blake2b(digest_size=ID_BYTES, person=name) for name in (SECRET, PUBLIC, GENERATED, REPLAY)}


def _digest(text: bytes, namespace: bytes) -> bytes:
    """Return blake2b-128 of `text`. Copying a hasher takes a third less time than making one."""
    hasher = _HASHERS[namespace].copy()
    hasher.update(text)
    return hasher.digest()


def dedupe_id(project: str, hit_id: str, namespace: bytes = SECRET) -> bytes:
    """Return blake2b-128 of `project NUL hitId` in UTF-8, in a namespace (contract.md, section 5)."""
    return _digest(f"{project}\0{hit_id}".encode(), namespace)


def id_of(raw: RawHit) -> bytes:
    """Return the id that the window keeps of a hit.

    Ids of secret doors have the same digest as in releases without namespaces, so an upgrade keeps the window.
    """
    if raw.replay_to is None:
        namespace = GENERATED if raw.hit.hit_id is None else PUBLIC if raw.is_public else SECRET
        return _digest(f"{raw.project}\0{raw.hit_id}".encode(), namespace)  # `dedupe_id` without the call
    parts = [raw.project, raw.is_public, raw.is_generated, raw.replay_to, raw.replay_id, raw.hit_id]
    return _digest(msgspec.json.encode(parts), REPLAY)


def common_id(raw: RawHit) -> bytes:
    """Return the id that releases without namespaces kept: the same for all doors; a replay adds connection and replay id."""
    suffix = "" if raw.replay_to is None else f"\0{raw.replay_to}\0{raw.replay_id}"
    return dedupe_id(raw.project, raw.hit_id + suffix)


class ClaimedIds(NamedTuple):
    """Concatenated ids of one partition and one span of time; append times in ms."""

    partition: int
    first_ms: int
    last_ms: int
    joined: bytes
    hashes: Hashes
    marks: Marks


class Claim:
    """The ids that one batch accepted, until its transaction commits or aborts."""

    def __init__(self, deduplicator: Deduplicator) -> None:
        self._deduplicator = deduplicator
        self._spans: dict[tuple[int, int], dict[bytes, int]] = {}
        self._times: dict[tuple[int, int], tuple[int, int]] = {}
        self.ids: dict[int, dict[bytes, int]] = {}
        """By partition, all ids of the batch with their content marks; later batches look them up here."""
        self.key_hashes: dict[bytes, int] = {}
        """The key hash of each id of the batch."""

    def accept(self, partition: int, span: int, ids: Mapping[bytes, int], appended_ms: Sequence[int]) -> None:
        """Add new ids with their marks, from records that were appended at `appended_ms`."""
        key = (partition, span)
        self._spans.setdefault(key, {}).update(ids)
        times = (*self._times.get(key, ()), min(appended_ms), max(appended_ms))
        self._times[key] = (min(times), max(times))
        self.ids.setdefault(partition, {}).update(ids)

    def withdraw(self, partition: int, digest: bytes) -> None:
        """Remove one id, because its hit was not routed."""
        self.ids[partition].pop(digest, None)
        for (where, _), ids in self._spans.items():
            if where == partition:
                ids.pop(digest, None)

    def blocks(self) -> list[ClaimedIds]:
        """Return what the transaction must write to `seen-hits`, one entry per partition and span."""
        return [
            ClaimedIds(
                key[0],
                *self._times[key],
                b"".join(ids),
                as_hashes([self.key_hashes[digest] for digest in ids]),
                as_marks(list(ids.values())),
            )
            for key, ids in self._spans.items()
            if ids
        ]

    def commit(self) -> None:
        """Move the ids to the seen stores; call it only after the transaction has committed."""
        for block in self.blocks():
            self._deduplicator.stores[block.partition].add(as_ids(block.joined), block.marks, block.last_ms)
        self.discard()

    def discard(self) -> None:
        """Discard the claim. Idempotent."""
        self._deduplicator.release(self)


class Deduplicator:
    """The seen stores of the assigned partitions, and the claims of batches that are not committed yet."""

    def __init__(self) -> None:
        self.stores: dict[int, SeenStore] = {}
        self.partitions: int | None = None
        """Number of partitions of hits-raw in this assignment; None: unknown, so no hit may be accepted."""
        self._claims: list[Claim] = []

    def install(self, stores: Mapping[int, SeenStore], partitions: int | None) -> None:
        """Replace stores and number of partitions for a new assignment; open claims of the previous one are dropped."""
        self.stores = dict(stores)
        self.partitions = partitions
        self._claims = []

    def claim(self) -> Claim:
        """Return an empty claim for a new batch."""
        claim = Claim(self)
        self._claims.append(claim)
        return claim

    def release(self, claim: Claim) -> None:
        """Remove `claim` from the open claims."""
        self._claims = [other for other in self._claims if other is not claim]

    def needs_common_ids(self, partition: int) -> bool:
        """Return whether the window of `partition` still holds ids of a release without namespaces."""
        return self.stores[partition].has_common_ids

    def classify(
        self,
        claim: Claim,
        partition: int,
        digests: Sequence[bytes],
        key_hashes: Sequence[int],
        marks: Sequence[int],
        appended_ms: Sequence[int],
        common: Sequence[bytes] = (),
    ) -> list[DedupeResult]:
        """Return the result for each record, in offset order. New ids are added to `claim`.

        `key_hashes` holds the CRC32 of each record's key, `marks` its `content_mark`, `appended_ms` the broker's append time.
        `common` holds the `common_id` of each while `needs_common_ids`, for the lookup of ids that older releases wrote.
        """
        if not digests:
            return []
        claim.key_hashes.update(zip(digests, key_hashes, strict=True))
        store = self.stores[partition]
        results: list[DedupeResult] = []
        # Nearly always one span; a backlog may cover several.
        for span, run in groupby(map(store.span, appended_ms)):
            part = slice(len(results), len(results) + sum(1 for _ in run))
            results += self._classify(
                claim, store, partition, span, digests[part], marks[part], appended_ms[part], common[part]
            )
        return results

    def _classify(
        self,
        claim: Claim,
        store: SeenStore,
        partition: int,
        span: int,
        digests: Sequence[bytes],
        marks: Sequence[int],
        appended_ms: Sequence[int],
        common: Sequence[bytes],
    ) -> list[DedupeResult]:
        marks_found = store.find(as_ids(b"".join(digests)), span)
        if common:
            marks_found = np.maximum(marks_found, store.find_common(as_ids(b"".join(common)), span))
        found = marks_found.tolist()
        claims = [ids for other in self._claims if (ids := other.ids.get(partition))]
        accepted: dict[bytes, int] = {}
        results = []
        for digest, mark, first in zip(digests, marks, found, strict=True):
            if first == ABSENT:
                first = accepted.get(digest, ABSENT)
                for claimed in claims:
                    first = max(first, claimed.get(digest, ABSENT))
                if first == ABSENT:
                    accepted[digest] = mark
                    results.append(DedupeResult.NEW)
                    continue
            results.append(DedupeResult.DUPLICATE if first in (mark, UNMARKED) else DedupeResult.CONFLICTING)
        if accepted:
            claim.accept(partition, span, accepted, appended_ms)
        return results
