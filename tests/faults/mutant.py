"""Seeds one bug into a role before it starts. The proof must detect each of these mutants.

    python -m tests.faults.mutant NAME ROLE -c FILE --slot N

`chaos` is not a bug: it aborts one transaction in seven, and the correct code must handle that. Mutants that need aborts use it.
Production code does not depend on this module.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import TopicPartition
from msgspec import structs

from pipeline.codec.hit import DecodedHit
from pipeline.errors import TransactionAborted
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.kafka.transport.assignment import Assignment
from pipeline.kafka.transport.batch import Outputs
from pipeline.kafka.transport.committer import Committer
from pipeline.kafka.transport.poller import Poller
from pipeline.router import prepare, routing, seen_hits
from pipeline.stages.decide import Decisions, RoutingPlan
from pipeline.stages.deduplicate import Claim, DedupeResult, Deduplicator


@dataclass(frozen=True, slots=True)
class Mutant:
    """`seed_bug` patches the classes of this process; `faults` are those that reveal the bug."""

    seed_bug: Callable[[], None]
    faults: str = "route-kill=4"


def chaos() -> None:
    """Abort every seventh commit, as a broker can."""
    commit = TransactionalProducer.commit
    commits = itertools.count(1)

    def refuse(self: TransactionalProducer, offsets: Any, metadata: object) -> None:
        if next(commits) % 7 == 3:  # early, since the time between two kills can be short
            self.abort()
            raise TransactionAborted("chaos")
        commit(self, offsets, metadata)

    TransactionalProducer.commit = refuse  # type: ignore[method-assign]


def _patch_claim_commit_early() -> None:
    classify = Deduplicator.classify

    def mark_first(self: Deduplicator, claim: Claim, partition: int, *rest: Any) -> list[DedupeResult]:
        new = classify(self, claim, partition, *rest)
        for block in claim.blocks():
            if block.partition == partition:
                from pipeline.codec.seen_block import as_ids

                self.stores[partition].add(as_ids(block.joined), block.marks, block.last_ms)
        return new

    Deduplicator.classify = mark_first  # type: ignore[method-assign]


def seen_store_before_commit() -> None:
    """Add ids to the seen store before the commit."""
    chaos()
    _patch_claim_commit_early()


def claim_kept_after_abort() -> None:
    """Keep the ids of an aborted batch."""
    chaos()
    Outputs.after_abort = lambda self, action: None  # type: ignore[method-assign]
    discard = Claim.discard
    Claim.commit = lambda self: _really_commit(self, discard)  # type: ignore[method-assign]
    Claim.discard = lambda self: None  # type: ignore[method-assign]


def _really_commit(claim: Claim, discard: Callable[[Claim], None]) -> None:
    from pipeline.codec.seen_block import as_ids

    for block in claim.blocks():
        claim._deduplicator.stores[block.partition].add(as_ids(block.joined), block.marks, block.last_ms)
    discard(claim)


def no_rewind_after_abort() -> None:
    """Do not read an aborted batch again."""
    chaos()

    def go_on(self: Poller, assignment: Assignment) -> None:
        assignment.must_rewind = False

    Poller._rewind = go_on  # type: ignore[method-assign]


def no_abort_on_error() -> None:
    """Commit the records produced before a failure as if the batch were complete."""
    write = prepare.Work.write
    draw = random.Random()

    def fail_half_way(self: prepare.Work, outputs: Outputs) -> None:
        if draw.random() < 1 / 7:
            half = {topic: records[: len(records) // 2] for topic, records in self.routed.items()}
            write(self._replace(routed=half), outputs)
        else:
            write(self, outputs)

    prepare.Work.write = fail_half_way  # type: ignore[method-assign]


def offsets_before_outputs() -> None:
    """Commit the offsets outside the transaction, before it."""
    commit = Committer._commit

    async def commit_first(self: Committer, assignment: object, offsets: Any, outputs: Outputs, counts: bool) -> None:
        first = [TopicPartition(tp.topic, tp.partition, offset) for tp, offset in offsets.items()]
        poller = self._membership()
        assert isinstance(poller, Poller)
        await poller._run(lambda: poller._consumer.commit(offsets=first, asynchronous=False))
        import asyncio

        await asyncio.sleep(0.3)
        await commit(self, assignment, offsets, outputs, counts)

    Committer._commit = commit_first  # type: ignore[method-assign]


def no_offsets() -> None:
    """Leave the offsets out of the transaction."""
    commit = TransactionalProducer.commit
    TransactionalProducer.commit = lambda self, offsets, metadata: commit(self, [], metadata)  # type: ignore[method-assign]


def _without_blocks(change: Callable[[list[Any]], list[Any]]) -> None:
    blocks = Claim.blocks
    real_commit = Claim.commit

    def changed(self: Claim) -> list[Any]:
        return change(blocks(self))

    def commit(self: Claim) -> None:
        Claim.blocks = blocks  # type: ignore[method-assign]
        real_commit(self)
        Claim.blocks = changed  # type: ignore[method-assign]

    Claim.blocks = changed  # type: ignore[method-assign]
    Claim.commit = commit  # type: ignore[method-assign]


def no_seen_block() -> None:
    """Leave the blocks of ids out of the transaction."""
    _without_blocks(lambda blocks: [])


def block_in_wrong_partition() -> None:
    """Write blocks to a partition that the next owner does not read."""
    _without_blocks(lambda blocks: [block._replace(partition=(block.partition + 1) % 4) for block in blocks])


def no_rebuild() -> None:
    """Start a new assignment with empty seen stores."""
    _with_owned(lambda owned: [])


def half_rebuild() -> None:
    """Rebuild the seen stores of only half of the partitions."""
    _with_owned(lambda owned: [partition for partition in owned if partition % 2])


def _with_owned(changed: Callable[[list[int]], list[int]]) -> None:
    from pipeline.stages.seen_store import SeenStore

    read = seen_hits.read_seen_hits

    def mutated(config: Any, topic: str, owned: list[int], *rest: Any) -> Any:
        rebuilt = read(config, topic, changed(owned), *rest)
        stores = {p: SeenStore(86_400_000) for p in owned} | rebuilt.finish()
        rebuilt.finish = lambda: stores
        return rebuilt

    seen_hits.read_seen_hits = mutated


def claims_not_seen() -> None:
    """Ignore the ids of the previous batch while its commit is in progress."""
    claim = Deduplicator.claim

    def alone(self: Deduplicator) -> Claim:
        self._claims = []
        return claim(self)

    Deduplicator.claim = alone  # type: ignore[method-assign]
    commit = TransactionalProducer.commit

    def slow(self: TransactionalProducer, offsets: Any, metadata: object) -> None:
        import time

        time.sleep(0.2)
        commit(self, offsets, metadata)

    TransactionalProducer.commit = slow  # type: ignore[method-assign]


def no_transactions() -> None:
    """Use a producer without transactions, and commit no offsets."""
    from confluent_kafka import Producer

    def plain(self: TransactionalProducer) -> None:
        from pipeline.kafka import transactions

        assert transactions
        servers = _servers_of_command_line()
        self._calls.instance.producer = Producer({"bootstrap.servers": servers, "linger.ms": 2})

    def commit(self: TransactionalProducer, offsets: Any, metadata: object) -> None:
        self._calls.instance.producer.flush()
        import time

        time.sleep(0.3)

    TransactionalProducer.initialise = plain  # type: ignore[method-assign]
    TransactionalProducer.begin = lambda self: None  # type: ignore[method-assign]
    TransactionalProducer.abort = lambda self: None  # type: ignore[method-assign]
    TransactionalProducer.commit = commit  # type: ignore[method-assign]


def _servers_of_command_line() -> str:
    from pathlib import Path

    from pipeline.config import load_config

    return load_config(Path(sys.argv[sys.argv.index("-c") + 1])).kafka.servers


def dead_letters_dropped() -> None:
    """Drop the dead letters."""
    write = prepare.Work.write

    def without(self: prepare.Work, outputs: Outputs) -> None:
        write(self._replace(dead_letters=[]), outputs)

    prepare.Work.write = without  # type: ignore[method-assign]


def integrations_ignored() -> None:
    """Ignore the sender's `integrations`."""
    from pipeline.codec.integrations import ABSENT

    decide = RoutingPlan.decide

    def careless(self: RoutingPlan, hit: DecodedHit, routed_hit: bytes) -> Decisions:
        return decide(self, structs.replace(hit, integrations=ABSENT), routed_hit)

    RoutingPlan.decide = careless  # type: ignore[method-assign]


def event_edited() -> None:
    """Change the client's event."""
    encode = routing.encode_routed_hit
    routing.encode_routed_hit = lambda *a: encode(*a).replace(b'"text": "xxx', b'"text": "xx')


def answered_before_stored() -> None:
    """Answer 204 before Kafka has acknowledged the hit."""
    from pipeline.kafka.producer import AcknowledgingProducer

    send = AcknowledgingProducer.send

    def eager(self: Any, topic: str, value: bytes, key: bytes, headers: Any, report: Any) -> bool:
        queued = send(self, topic, value, key, headers, lambda stored: None)
        self._loop.call_soon(report, True)
        return queued

    AcknowledgingProducer.send = eager  # type: ignore[method-assign]


MUTANTS = {
    "chaos": Mutant(chaos),
    "seen-store-before-commit": Mutant(seen_store_before_commit, "route-kill=2"),
    "claim-kept-after-abort": Mutant(claim_kept_after_abort, "route-kill=2"),
    "no-rewind-after-abort": Mutant(no_rewind_after_abort, "route-kill=2"),
    "no-abort-on-error": Mutant(no_abort_on_error, "route-kill=1"),
    "offsets-before-outputs": Mutant(offsets_before_outputs, "route-kill=5"),
    "no-offsets": Mutant(no_offsets, "route-kill=2"),
    "no-seen-block": Mutant(no_seen_block, "route-kill=4"),
    "block-in-wrong-partition": Mutant(block_in_wrong_partition, "route-kill=4"),
    "no-rebuild": Mutant(no_rebuild, "route-kill=4"),
    "half-rebuild": Mutant(half_rebuild, "route-kill=5"),
    "claims-not-seen": Mutant(claims_not_seen, "route-kill=1"),
    "no-transactions": Mutant(no_transactions, "route-kill=4"),
    "dead-letters-dropped": Mutant(dead_letters_dropped, "route-kill=1"),
    "integrations-ignored": Mutant(integrations_ignored, "route-kill=1"),
    "event-edited": Mutant(event_edited, "route-kill=1"),
    "answered-before-stored": Mutant(answered_before_stored, "broker-kill=3"),
}


def main() -> None:
    """Seed the bug, then run the role."""
    name = sys.argv.pop(1)
    MUTANTS[name].seed_bug()
    from pipeline.__main__ import main as run_role

    run_role()


if __name__ == "__main__":
    main()
