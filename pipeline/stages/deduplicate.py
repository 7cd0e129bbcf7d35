"""Deduplication: the first record with an id wins, whatever crashes (contract.md, section 5).

Memory follows Kafka: what a batch accepts is a `Claim`, which later batches see at once, but which enters the seen
store only after the batch's transaction is committed. An abort discards it, and the records come again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from itertools import groupby
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.codec.raw_record import RawHit
from pipeline.codec.seen_block import ID_BYTES, UNMARKED, Hashes, Marks, as_hashes, as_ids, as_marks
from pipeline.stages.id_table import ABSENT
from pipeline.stages.seen_store import SeenStore


class Standing(Enum):
    """Of a record among those with its id; CONFLICTING is a duplicate whose content is not that of the first."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICTING = "conflicting"


SECRET, PUBLIC, GENERATED, REPLAY = b"", b"public", b"generated", b"replay"
"""Namespaces of ids, as the `person` of blake2b: no id of one equals an id of another, whatever a sender writes."""


def dedupe_id(project: str, hit_id: str, namespace: bytes = SECRET) -> bytes:
    """blake2b-128 of `project NUL hitId` in UTF-8, in a namespace (contract.md, section 5)."""
    return blake2b(f"{project}\0{hit_id}".encode(), digest_size=ID_BYTES, person=namespace).digest()


def id_of(raw: RawHit) -> bytes:
    """The id that is kept of a hit.

    Ids of secret doors are digested as in releases without namespaces, so an upgrade keeps the window.
    """
    if raw.replay_to is None:
        namespace = GENERATED if raw.hit.hit_id is None else PUBLIC if raw.is_public else SECRET
        text = f"{raw.project}\0{raw.hit_id}"  # `dedupe_id` without the call
        return blake2b(text.encode(), digest_size=ID_BYTES, person=namespace).digest()
    parts = [raw.project, raw.is_public, raw.is_generated, raw.replay_to, raw.replay_id, raw.hit_id]
    return blake2b(msgspec.json.encode(parts), digest_size=ID_BYTES, person=REPLAY).digest()


def common_id(raw: RawHit) -> bytes:
    """The id that releases without namespaces kept of a hit: one for all doors, and for a replay with more words."""
    words = "" if raw.replay_to is None else f"\0{raw.replay_to}\0{raw.replay_id}"
    return dedupe_id(raw.project, raw.hit_id + words)


class ClaimedIds(NamedTuple):
    """Ids of one partition and one span of time, joined; append times in ms."""

    partition: int
    first_ms: int
    last_ms: int
    joined: bytes
    hashes: Hashes
    marks: Marks


class Claim:
    """The ids that one batch accepted; settled exactly once, by commit or discard."""

    def __init__(self, deduplicator: Deduplicator) -> None:
        self._deduplicator = deduplicator
        self._spans: dict[tuple[int, int], dict[bytes, int]] = {}
        self._times: dict[tuple[int, int], tuple[int, int]] = {}
        self.ids: dict[int, dict[bytes, int]] = {}
        """All of them by partition with their marks, for the batches behind this one."""
        self.key_hashes: dict[bytes, int] = {}
        """The key hash of each id of the batch."""

    def accept(self, partition: int, span: int, ids: Mapping[bytes, int], appended_ms: Sequence[int]) -> None:
        """Note new ids with their marks, from records that were appended at `appended_ms`."""
        key = (partition, span)
        self._spans.setdefault(key, {}).update(ids)
        times = (*self._times.get(key, ()), min(appended_ms), max(appended_ms))
        self._times[key] = (min(times), max(times))
        self.ids.setdefault(partition, {}).update(ids)

    def forget(self, partition: int, digest: bytes) -> None:
        """Take one id back: its hit was not routed."""
        self.ids[partition].pop(digest, None)
        for (where, _), ids in self._spans.items():
            if where == partition:
                ids.pop(digest, None)

    def blocks(self) -> list[ClaimedIds]:
        """What the transaction has to write to `seen-hits`, one per partition and span."""
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
        """Kafka has committed: move the ids to the seen stores. Nothing else may call this."""
        for block in self.blocks():
            self._deduplicator.stores[block.partition].add(as_ids(block.joined), block.marks, block.last_ms)
        self.discard()

    def discard(self) -> None:
        """Take the claim back. May be called again."""
        self._deduplicator.release(self)


class Deduplicator:
    """The seen stores of the assigned partitions, and the claims of batches that are not committed yet."""

    def __init__(self) -> None:
        self.stores: dict[int, SeenStore] = {}
        self.partitions: int | None = None
        """How many partitions of hits-raw the group reads in this assignment; None: unknown, nothing may be accepted."""
        self._claims: list[Claim] = []

    def install(self, stores: Mapping[int, SeenStore], partitions: int | None) -> None:
        """Begin with the stores and the number of partitions of a new assignment; open claims belong to the former one."""
        self.stores = dict(stores)
        self.partitions = partitions
        self._claims = []

    def claim(self) -> Claim:
        """Begin a batch."""
        claim = Claim(self)
        self._claims.append(claim)
        return claim

    def release(self, claim: Claim) -> None:
        """Forget `claim`."""
        self._claims = [other for other in self._claims if other is not claim]

    def needs_common_ids(self, partition: int) -> bool:
        """Whether the window of `partition` still holds ids of a release without namespaces."""
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
    ) -> list[Standing]:
        """How each record stands, in offset order. New ids are added to `claim`.

        `key_hashes` holds the CRC32 of each record's key, `marks` its `content_mark`, `appended_ms` the broker's append time.
        `common` holds the `common_id` of each while `needs_common_ids`: they are looked up in what older releases wrote.
        """
        if not digests:
            return []
        claim.key_hashes.update(zip(digests, key_hashes, strict=True))
        store = self.stores[partition]
        standings: list[Standing] = []
        # One span nearly always; a backlog may reach over several.
        for span, run in groupby(map(store.span, appended_ms)):
            part = slice(len(standings), len(standings) + sum(1 for _ in run))
            standings += self._classify(
                claim, store, partition, span, digests[part], marks[part], appended_ms[part], common[part]
            )
        return standings

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
    ) -> list[Standing]:
        marks_found = store.find(as_ids(b"".join(digests)), span)
        if common:
            marks_found = np.maximum(marks_found, store.find_common(as_ids(b"".join(common)), span))
        found = marks_found.tolist()
        claims = [ids for other in self._claims if (ids := other.ids.get(partition))]
        accepted: dict[bytes, int] = {}
        standings = []
        for digest, mark, first in zip(digests, marks, found, strict=True):
            if first == ABSENT:
                first = accepted.get(digest, ABSENT)
                for claimed in claims:
                    first = max(first, claimed.get(digest, ABSENT))
                if first == ABSENT:
                    accepted[digest] = mark
                    standings.append(Standing.NEW)
                    continue
            standings.append(Standing.DUPLICATE if first in (mark, UNMARKED) else Standing.CONFLICTING)
        if accepted:
            claim.accept(partition, span, accepted, appended_ms)
        return standings
