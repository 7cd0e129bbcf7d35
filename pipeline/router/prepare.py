"""Prepares everything that the transaction of one batch of raw records writes. Pure, except for the claim on the ids."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from confluent_kafka import Message
from faust.types import TP

from pipeline.codec.avro import Framing
from pipeline.codec.content import content_mark
from pipeline.codec.ledger_entry import LedgerEntry, encode_ledger_entry
from pipeline.codec.raw_record import WITHOUT_REGISTRY, project_header
from pipeline.codec.seen_block import encode_seen_block
from pipeline.config.models import Config
from pipeline.errors import StaleBatch
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transport.batch import Batch
from pipeline.router.outputs import OutputWriter
from pipeline.router.results import (
    INVALID_OPTIONS,
    PLAN_VIOLATION,
    ROUTE_FAILED,
    DeadLettered,
    Duplicate,
    OtherResult,
    Rekeyed,
    Replayed,
    ReplaySkipped,
    Result,
    Routed,
)
from pipeline.router.routing import Routing
from pipeline.router.tally import Tally
from pipeline.router.work import Output, Work
from pipeline.stages.classify import Dead, RawHit, Rekey, classify_raw
from pipeline.stages.deduplicate import DedupeResult, Deduplicator, common_id, id_of

logger = logging.getLogger(__name__)

_UNEXPECTED_DATA_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
)
"""Errors that unexpected data causes. An unavailable service raises other errors, and the batch is retried."""
Faults = Mapping[tuple[TP, int], str]
"""Maps the position of a record to the reason why it makes its batch fail."""
_NO_FAULTS: Faults = {}


class _Candidate(msgspec.Struct, gc=False):
    """A valid hit before deduplication. `digest` is its id, `mark` stands for its content."""

    record: Any
    raw: RawHit
    digest: bytes
    mark: int
    appended_ms: int
    """The broker's append time."""


class Preparer:
    """Prepares batches with one version of the configuration, and with the deduplicator of the assigned partitions."""

    def __init__(
        self,
        config: Config,
        deduplicator: Deduplicator,
        routing: Routing | None = None,
        raw_framing: Framing = WITHOUT_REGISTRY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._deduplicator = deduplicator
        self._names = TopicNames(config.kafka.topic_prefix)
        self._routing = routing or Routing(config)
        self._raw_framing = raw_framing
        self._clock = clock
        self._outputs = OutputWriter(self._names, config.connections, self._routing.version, self._now_ms)

    def prepare(self, batch: Batch, faults: Faults = _NO_FAULTS) -> Work:
        """Return the work of `batch`. The caller must discard its claim if the work never reaches a transaction.

        Records at the positions in `faults` are not parsed; they become dead letters with the message in `faults`. Raises
        StaleBatch if this assignment has no agreed number of partitions (router/seen_hits.py).
        """
        partitions = self._deduplicator.partitions
        if partitions is None:
            raise StaleBatch("the number of partitions is unknown until the next rebalance")
        work = Work(
            self._deduplicator.claim(),
            self._outputs.headers,
            {topic: [] for topic in self._outputs.topics.values()},
            [],
            [],
            Counter(),
        )
        try:
            for tp, records in batch.records.items():
                # Not `batch.next_offsets`, which may be after a gap or commit markers.
                self._partition(work, tp, records, (records[-1].offset() or 0) + 1, partitions, faults)
        except BaseException:
            work.claim.discard()
            raise
        for block in work.claim.blocks():
            value = encode_seen_block(
                block.joined, block.hashes, block.marks, block.first_ms, block.last_ms, partitions
            )
            # A topic without broker timestamps gets the timestamps of the raw records, which the broker has set.
            work.others.append(
                Output(self._names.seen_hits, value, b"%d" % block.partition, block.partition, None, block.last_ms)
            )
        return work

    def _partition(
        self,
        work: Work,
        tp: TP,
        records: Sequence[Message],
        next_offset: int,
        partitions: int,
        faults: Faults,
    ) -> None:
        tally = Tally(self._routing.plans)
        candidates: list[_Candidate] = []
        for record in records:
            found = self._read(record, tp, partitions, faults)
            if isinstance(found, _Candidate):
                candidates.append(found)
            else:
                self._add(work, tally, record, found)
        for candidate, dedupe_result in zip(candidates, self._deduplicate(work, tp, candidates), strict=True):
            result: Result
            try:
                result = self._route(candidate, dedupe_result)
            except _UNEXPECTED_DATA_ERRORS as error:
                work.claim.withdraw(tp.partition, candidate.digest)  # it may be sent again once the bug is fixed
                result = _failed(error, candidate)
            if isinstance(result, Routed):
                tally.add_routed(result)
                self._outputs.add_routed(work, candidate.record, result)
            else:
                self._add(work, tally, candidate.record, result)
        entry = LedgerEntry(
            "route", tp.topic, tp.partition, records[0].offset() or 0, next_offset, self._now_ms(), tally.counts()
        )
        work.others.append(Output(self._names.ledger, encode_ledger_entry(entry), b"%d" % tp.partition))

    def _add(self, work: Work, tally: Tally, record: Message, result: OtherResult) -> None:
        tally.add(result)
        self._outputs.add(work, record, result)

    def _read(self, record: Message, tp: TP, partitions: int, faults: Faults) -> _Candidate | Rekeyed | DeadLettered:
        """Decode and check one record, without deduplication."""
        offset = record.offset() or 0
        if faults and (message := faults.get((tp, offset))) is not None:
            logger.error(
                "hit dead-lettered because it made its batch fail: topic=%s partition=%d offset=%d reason=%s",
                *(*tp, offset, message),
            )
            return DeadLettered(Dead(ROUTE_FAILED, message, "", self._project_of(record)))
        try:
            found = classify_raw(
                record.value(),
                record.key(),
                record.headers(),  # type: ignore[arg-type] # a list; the type stub is wrong
                tp.topic,
                tp.partition,
                offset,
                partitions,
                self._routing.plans,
                self._raw_framing,
            )
            if isinstance(found, RawHit):
                violation = self._routing.quarantined(found)
                if violation is not None:
                    return DeadLettered(Dead(PLAN_VIOLATION, violation.message, violation.path, found.project))
                return _Candidate(record, found, id_of(found), content_mark(found.hit), record.timestamp()[1])
        except _UNEXPECTED_DATA_ERRORS as error:
            return DeadLettered(_dead_letter_for_bug(error, record, self._project_of(record)))
        return Rekeyed(found) if isinstance(found, Rekey) else DeadLettered(found)

    def _project_of(self, record: Message) -> str:
        """Return the project in the headers of a record that is not decoded; "" if the configuration has no such project."""
        return project_header(record.headers(), self._routing.plans)  # type: ignore[arg-type] # a list; the type stub is wrong

    def _deduplicate(self, work: Work, tp: TP, candidates: Sequence[_Candidate]) -> Sequence[DedupeResult]:
        if not candidates:
            return ()
        needs_common_ids = self._deduplicator.needs_common_ids(tp.partition)
        return self._deduplicator.classify(
            work.claim,
            tp.partition,
            [candidate.digest for candidate in candidates],
            [candidate.raw.key_hash for candidate in candidates],
            [candidate.mark for candidate in candidates],
            [candidate.appended_ms for candidate in candidates],
            [common_id(candidate.raw) for candidate in candidates] if needs_common_ids else [],
        )

    def _route(
        self, candidate: _Candidate, dedupe_result: DedupeResult
    ) -> Routed | Replayed | ReplaySkipped | Duplicate:
        raw = candidate.raw
        if raw.replay_to is not None:
            return self._replay(candidate, raw.replay_to, dedupe_result is DedupeResult.NEW)
        if dedupe_result is not DedupeResult.NEW:
            return Duplicate(raw.project, dedupe_result is DedupeResult.CONFLICTING)
        hit = self._routing.route(raw, candidate.appended_ms)
        return Routed(raw, hit, self._routing.values(hit))

    def _replay(self, candidate: _Candidate, connection: str, is_new: bool) -> Replayed | ReplaySkipped:
        """Route a hit that an operator replays to one connection."""
        raw, project = candidate.raw, candidate.raw.project
        if not is_new:
            return ReplaySkipped(project, connection, "duplicate")
        hit = self._routing.route(raw, candidate.appended_ms)
        decision = next((found for found in hit.decisions if found.connection == connection), None)
        if decision is None:
            return ReplaySkipped(project, connection, "no_such_connection")
        if decision.reason is not None:
            return ReplaySkipped(project, connection, decision.reason.value)
        if decision.fault is not None:
            dead = Dead(INVALID_OPTIONS, decision.fault.message, decision.fault.path, project)
            return ReplaySkipped(project, connection, INVALID_OPTIONS, dead)
        return Replayed(raw, next(value for names, value in self._routing.values(hit) if connection in names))

    def _now_ms(self) -> int:
        return round(self._clock() * 1000)


def _failed(error: Exception, candidate: _Candidate) -> DeadLettered | ReplaySkipped:
    raw = candidate.raw
    dead = _dead_letter_for_bug(error, candidate.record, raw.project)
    return (
        DeadLettered(dead) if raw.replay_to is None else ReplaySkipped(raw.project, raw.replay_to, ROUTE_FAILED, dead)
    )


def _dead_letter_for_bug(error: Exception, record: Message, project: str) -> Dead:
    logger.error(
        "hit dead-lettered because of a bug, please report it: topic=%s partition=%s offset=%s",
        *(record.topic(), record.partition(), record.offset()),
        exc_info=error,
    )
    return Dead(ROUTE_FAILED, f"{type(error).__name__}: {error}", "", project)
