"""Prepares everything that the transaction of one batch of raw records writes. Pure, except for the claim on the ids."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from confluent_kafka import Message
from faust.types import TP

from pipeline.codec.avro import Framing
from pipeline.codec.bounded_counts import CountsFolder
from pipeline.codec.content import content_mark
from pipeline.codec.dead_letter import DeadLetter
from pipeline.codec.ledger_entry import REASON_BYTES, Entry, LedgerEntry, encode_ledger_entry, others_of
from pipeline.codec.printable import shorten_bytes
from pipeline.codec.raw_record import (
    RECEIVED_AT,
    REPLAY_ID,
    WITHOUT_REGISTRY,
    Dead,
    Headers,
    RawHit,
    Rekey,
    classify_raw,
    is_public,
    project_header,
)
from pipeline.codec.seen_block import encode_seen_block
from pipeline.config.models import Config
from pipeline.errors import StaleBatch
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transport.batch import Batch
from pipeline.router.routing import Routing
from pipeline.router.work import Output, Work
from pipeline.stages.decide import Decisions
from pipeline.stages.deduplicate import DedupeResult, Deduplicator, common_id, id_of

logger = logging.getLogger(__name__)

CONFIG_VERSION = "config-version"
PLAN_VIOLATION_HEADER = "plan-violation"
"""Headers of a routed hit: the configuration version that routed it, and the path of its tracking plan violation."""
PLAN_VIOLATION = "plan_violation"
ROUTE_FAILED = "route_failed"
"""Dead-letter reason of a hit for which our code raises an unexpected error (a bug). A retry would fail again."""
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
INVALID_OPTIONS = "invalid_options"
_HELD_NAMES = 1_000
"""Limit of unknown integration names and paths that are counted one by one in a batch."""


Faults = Mapping[tuple[TP, int], str]
"""Maps the position of a record to the reason why it makes its batch fail."""
_NO_FAULTS: Faults = {}


@dataclass(slots=True)
class _Tally:
    """The number of hits of a project with the same decisions."""

    project: str
    decisions: Decisions
    hits: int = 0

    def add_to(self, counts: Counter[Entry]) -> None:
        counts[Entry(self.project, "", "unique")] += self.hits
        for decision in self.decisions:
            name = decision.connection
            if decision.reason is not None:
                counts[Entry(self.project, name, "filtered", decision.reason.value)] += self.hits
            elif decision.fault is not None:
                counts[Entry(self.project, name, "dead", INVALID_OPTIONS)] += self.hits
            else:
                counts[Entry(self.project, name, "routed")] += self.hits


class Preparer:
    """Prepares batches with one version of the configuration, and with the deduplicator of the assigned partitions."""

    def __init__(
        self,
        config: Config,
        deduplicator: Deduplicator,
        routing: Routing | None = None,
        raw_framing: Framing = WITHOUT_REGISTRY,
    ) -> None:
        self._deduplicator = deduplicator
        self._names = TopicNames(config.kafka.topic_prefix)
        self._routing = routing or Routing(config)
        self._raw_framing = raw_framing
        self._topics = {name: self._names.deliveries(name) for name in config.connections}
        self._headers: Headers = [(CONFIG_VERSION, self._routing.version)]

    def prepare(self, batch: Batch, faults: Faults = _NO_FAULTS) -> Work:
        """Return the work of `batch`. The caller must discard its claim if the work never reaches a transaction.

        Records at the positions in `faults` are not parsed; they become dead letters with the message in `faults`. Raises
        StaleBatch if this assignment has no agreed number of partitions (router/seen_hits.py).
        """
        partitions = self._deduplicator.partitions
        if partitions is None:
            raise StaleBatch("the number of partitions is unknown until the next rebalance")
        work = Work(
            self._deduplicator.claim(), self._headers, {topic: [] for topic in self._topics.values()}, [], [], Counter()
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
        counts: Counter[Entry] = Counter()
        first_offset = records[0].offset() or 0
        if faults:
            records = self._without_faults(work, tp, records, faults, counts)
        hits: list[RawHit] = []
        digests: list[bytes] = []
        key_hashes: list[int] = []
        marks: list[int] = []
        accepted: list[Message] = []
        appended: list[int] = []
        topic, partition = tp
        routing = self._routing
        for record in records:
            try:
                found = classify_raw(
                    record.value(),
                    record.key(),
                    record.headers(),  # type: ignore[arg-type] # a list; the type stub is wrong
                    topic,
                    partition,
                    record.offset() or 0,
                    partitions,
                    routing.plans,
                    self._raw_framing,
                )
                violation = routing.quarantined(found) if type(found) is RawHit else None
            except _UNEXPECTED_DATA_ERRORS as error:
                found = _dead_letter_for_bug(error, record)
            if type(found) is RawHit:
                if violation is None:
                    hits.append(found)
                    digests.append(id_of(found))
                    key_hashes.append(found.key_hash)
                    marks.append(content_mark(found.hit))
                    accepted.append(record)
                    appended.append(record.timestamp()[1])
                    continue
                found = Dead(PLAN_VIOLATION, violation.message, violation.path, found.project)
            if type(found) is Rekey:
                work.others.append(_written_back(record, found))
                counts[Entry("", "", "rekeyed")] += 1
            elif type(found) is Dead:
                work.dead_letters.append(self._dead_letter(record, found))
                counts[Entry(found.project, "", "received")] += 1
                counts[Entry(found.project, "", "dead", found.reason)] += 1
        for project, received in Counter(raw.project for raw in hits if raw.replay_to is None).items():
            counts[Entry(project, "", "received")] += received
        deduplicator = self._deduplicator
        common = [common_id(raw) for raw in hits] if hits and deduplicator.needs_common_ids(partition) else []
        dedupe_results = deduplicator.classify(work.claim, partition, digests, key_hashes, marks, appended, common)
        self._route(work, zip(hits, dedupe_results, digests, appended, accepted, strict=True), counts)
        entry = LedgerEntry("route", topic, partition, first_offset, next_offset, round(time.time() * 1000), counts)
        work.others.append(Output(self._names.ledger, encode_ledger_entry(entry), b"%d" % partition))

    def _without_faults(
        self, work: Work, tp: TP, records: Sequence[Message], faults: Faults, counts: Counter[Entry]
    ) -> Sequence[Message]:
        """Turn the faulty records into dead letters, and return the others."""
        sound = []
        for record in records:
            message = faults.get((tp, record.offset() or 0))
            if message is None:
                sound.append(record)
                continue
            project = project_header(record.headers(), self._routing.plans)  # type: ignore[arg-type]
            logger.error("hit dead-lettered, it made its batch fail: %s reason=%s", _position_fields(record), message)
            work.dead_letters.append(self._dead_letter(record, Dead(ROUTE_FAILED, message, "", project)))
            counts[Entry(project, "", "received")] += 1
            counts[Entry(project, "", "dead", ROUTE_FAILED)] += 1
        return sound

    def _route(
        self, work: Work, hits: Iterable[tuple[RawHit, DedupeResult, bytes, int, Message]], counts: Counter[Entry]
    ) -> None:
        # There are few distinct decisions, which many hits share, so count per decisions object. The tally holds a reference to
        # it, so its id is not reused meanwhile.
        tallies: dict[int, _Tally] = {}
        routing, topics, by_topic = self._routing, self._topics, work.routed
        folder = CountsFolder(counts, _HELD_NAMES, others_of)
        for raw, dedupe_result, digest, appended_ms, record in hits:
            project = raw.project
            if dedupe_result is not DedupeResult.NEW and raw.replay_to is None:
                counts[Entry(project, "", "duplicate")] += 1
                if dedupe_result is DedupeResult.CONFLICTING:
                    counts[Entry(project, "", "conflicting")] += 1
                    work.conflicting[project] += 1
                continue
            try:
                if raw.replay_to is not None:
                    self._replay(work, raw, dedupe_result is DedupeResult.NEW, appended_ms, record, counts)
                    continue
                routed = routing.route(raw, appended_ms)
                values = routing.values(routed)
            except _UNEXPECTED_DATA_ERRORS as error:
                work.claim.withdraw(record.partition() or 0, digest)  # it may be sent again once the bug is fixed
                found = _dead_letter_for_bug(error, record, project)
                work.dead_letters.append(self._dead_letter(record, found, raw.replay_to or ""))
                outcome = "dead" if raw.replay_to is None else "replay_skipped"
                counts[Entry(project, "", outcome, ROUTE_FAILED)] += 1
                continue
            hit, decisions = raw.hit, routed.decisions
            tally = tallies.get(id(decisions))
            if tally is None:
                tally = tallies[id(decisions)] = _Tally(project, decisions)
            tally.hits += 1
            if hit.integrations.entries:
                for name in routing.plans[project].unknown_names(hit.integrations):
                    counts[Entry(project, "", "unknown_integration", shorten_bytes(name, REASON_BYTES))] += 1
                folder.fold()
                for decision in decisions:
                    if decision.fault is not None:
                        dead = Dead(INVALID_OPTIONS, decision.fault.message, decision.fault.path, project)
                        work.dead_letters.append(self._dead_letter(record, dead, decision.connection))
            for enrichment in routed.failed:
                counts[Entry(project, "", "enrichment_failed", enrichment)] += 1
            key = hit.identity.encode()
            if routed.violation is None:
                for connections, value in values:
                    record_out = (value, key)
                    for connection in connections:
                        by_topic[topics[connection]].append(record_out)
            else:
                path = shorten_bytes(routed.violation.path, REASON_BYTES)
                counts[Entry(project, "", PLAN_VIOLATION, path)] += 1
                folder.fold()
                headers = [*self._headers, (PLAN_VIOLATION_HEADER, path)]
                for connections, value in values:
                    work.others.extend(Output(topics[name], value, key, -1, headers) for name in connections)
        for tally in tallies.values():
            tally.add_to(counts)

    def _replay(
        self, work: Work, raw: RawHit, is_new: bool, appended_ms: int, record: Message, counts: Counter[Entry]
    ) -> None:
        """Route a hit that an operator replays to one connection; it counts for that connection only."""
        connection, project = raw.replay_to or "", raw.project
        if not is_new:
            counts[Entry(project, "", "replay_skipped", "duplicate")] += 1
            return
        routed = self._routing.route(raw, appended_ms)
        decision = next((found for found in routed.decisions if found.connection == connection), None)
        if decision is None:
            counts[Entry(project, "", "replay_skipped", "no_such_connection")] += 1
        elif decision.reason is not None:
            counts[Entry(project, "", "replay_skipped", decision.reason.value)] += 1
        elif decision.fault is not None:
            counts[Entry(project, "", "replay_skipped", INVALID_OPTIONS)] += 1
            dead = Dead(INVALID_OPTIONS, decision.fault.message, decision.fault.path, project)
            work.dead_letters.append(self._dead_letter(record, dead, connection))
        else:
            headers = [*self._headers, (REPLAY_ID, raw.replay_id)]
            for names, value in self._routing.values(routed):
                if connection in names:
                    key = raw.hit.identity.encode()
                    work.others.append(Output(self._topics[connection], value, key, -1, headers))
            counts[Entry(project, connection, "replayed")] += 1

    def _dead_letter(self, record: Message, dead: Dead, connection: str = "") -> Output:
        dead_letter = DeadLetter(
            "route",
            dead.reason,
            dead.message,
            record.topic() or "",
            record.partition() or 0,
            record.offset() or 0,
            round(time.time() * 1000),
            connection,
            project=dead.project,
            path=dead.path,
            is_public=is_public(record.headers()),  # type: ignore[arg-type] # a list; the type stub is wrong
        )
        return Output(self._names.dead_letters, record.value(), record.key(), -1, dead_letter.headers())


def _written_back(record: Message, found: Rekey) -> Output:
    headers = found.headers
    if not found.is_dated:
        headers = [*headers, (RECEIVED_AT, b"%d" % record.timestamp()[1])]
    return Output(record.topic() or "", record.value(), found.key, found.partition, headers)


def _position_fields(record: Message) -> str:
    return f"topic={record.topic()} partition={record.partition()} offset={record.offset()}"


def _dead_letter_for_bug(error: Exception, record: Message, project: str = "") -> Dead:
    logger.error("hit dead-lettered because of a bug, please report it: %s", _position_fields(record), exc_info=error)
    return Dead(ROUTE_FAILED, f"{type(error).__name__}: {error}", "", project)
