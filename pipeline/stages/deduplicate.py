"""Deduplication: the first record with an id wins, whatever crashes (contract.md, section 5).

Memory follows Kafka: what a batch accepts is a `Claim`, which later batches see at once, but which enters the seen
store only after the batch's transaction is committed. An abort discards it, and the records come again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import NamedTuple

from pipeline.codec.seen_block import ID_BYTES, as_ids
from pipeline.stages.seen_store import SeenStore


def dedupe_id(project: str, hit_id: str) -> bytes:
    """blake2b-128 of `project NUL hitId` in UTF-8 (contract.md, section 5)."""
    return blake2b(f"{project}\0{hit_id}".encode(), digest_size=ID_BYTES).digest()


class ClaimedIds(NamedTuple):
    """Ids of one partition and one span of time, joined; append times in ms."""

    partition: int
    first_ms: int
    last_ms: int
    joined: bytes


class Claim:
    """The ids that one batch accepted; settled exactly once, by commit or discard."""

    def __init__(self, deduplicator: Deduplicator) -> None:
        self._deduplicator = deduplicator
        self._spans: dict[tuple[int, int], list[bytes]] = {}
        self._times: dict[tuple[int, int], tuple[int, int]] = {}
        self.ids: dict[int, set[bytes]] = {}
        """All of them by partition, for the batches behind this one."""

    def accept(self, partition: int, span: int, digest: bytes, appended_ms: int) -> None:
        """Note one new id."""
        key = (partition, span)
        ids = self._spans.get(key)
        if ids is None:
            self._spans[key] = [digest]
            self._times[key] = (appended_ms, appended_ms)
        else:
            ids.append(digest)
            first_ms, last_ms = self._times[key]
            if appended_ms < first_ms or appended_ms > last_ms:
                self._times[key] = (min(first_ms, appended_ms), max(last_ms, appended_ms))
        self.ids.setdefault(partition, set()).add(digest)

    def blocks(self) -> list[ClaimedIds]:
        """What the transaction has to write to `seen-hits`, one per partition and span."""
        return [ClaimedIds(key[0], *self._times[key], b"".join(ids)) for key, ids in self._spans.items()]

    def commit(self) -> None:
        """Kafka has committed: move the ids to the seen stores. Nothing else may call this."""
        for block in self.blocks():
            self._deduplicator.stores[block.partition].add(as_ids(block.joined), block.last_ms)
        self.discard()

    def discard(self) -> None:
        """Take the claim back. May be called again."""
        self._deduplicator.release(self)


class Deduplicator:
    """The seen stores of the assigned partitions, and the claims of batches that are not committed yet."""

    def __init__(self) -> None:
        self.stores: dict[int, SeenStore] = {}
        self._claims: list[Claim] = []

    def install(self, stores: Mapping[int, SeenStore]) -> None:
        """Begin with the stores of a new assignment; open claims belong to the former one."""
        self.stores = dict(stores)
        self._claims = []

    def claim(self) -> Claim:
        """Begin a batch."""
        claim = Claim(self)
        self._claims.append(claim)
        return claim

    def release(self, claim: Claim) -> None:
        """Forget `claim`."""
        self._claims = [other for other in self._claims if other is not claim]

    def classify(
        self, claim: Claim, partition: int, digests: Sequence[bytes], appended_ms: Sequence[int]
    ) -> list[bool]:
        """For each record in offset order: is its id new? New ids are added to `claim`.

        `appended_ms` holds the broker's append time of each record.
        """
        if not digests:
            return []
        store = self.stores[partition]
        spans = [store.span(time_ms) for time_ms in appended_ms]
        ids = as_ids(b"".join(digests))
        # One span nearly always; a backlog may reach over several.
        known = {span: store.contains(ids, span).tolist() for span in set(spans)}
        claims: list[AbstractSet[bytes]] = [
            other.ids.get(partition, frozenset()) for other in self._claims if other is not claim
        ]
        claims.append(claim.ids.setdefault(partition, set()))
        new = []
        for position, digest in enumerate(digests):
            span = spans[position]
            is_new = not known[span][position] and not any(digest in ids_ for ids_ in claims)
            if is_new:
                claim.accept(partition, span, digest, appended_ms[position])
            new.append(is_new)
        return new
