"""From a batch of raw records to everything that its transaction writes: pure but for the claim on the ids."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from confluent_kafka import Message
from faust.types import TP

from pipeline.codec.dead_letter import DeadLetter
from pipeline.codec.ledger_entry import Entry, LedgerEntry, encode_ledger_entry
from pipeline.codec.raw_record import Dead, RawHit, Rekey, classify_raw
from pipeline.codec.routed_hit import (
    END,
    FLAG_SENT_AT,
    encode_routed_hit,
    normal_time,
    options_tail,
    time_text,
)
from pipeline.codec.seen_block import encode_seen_block
from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transactions import Headers
from pipeline.kafka.transport import Batch, Outputs
from pipeline.stages.decide import Decision, routing_plans
from pipeline.stages.deduplicate import Claim, Deduplicator, dedupe_id
from pipeline.stages.enrich import RequestFacts, enrich


class Output(NamedTuple):
    """One record to produce."""

    topic: str
    value: bytes | None
    key: bytes | None
    partition: int = -1
    headers: Headers | None = None
    timestamp_ms: int = 0


class Work(NamedTuple):
    """What one transaction writes. `routed` holds values and keys of routed hits by topic, `others` all the rest.

    Topic by topic, because librdkafka queues a run of records for one topic a tenth cheaper than records that alternate.
    """

    claim: Claim
    routed: dict[str, list[tuple[bytes, bytes]]]
    others: list[Output]

    def write(self, outputs: Outputs) -> None:
        """Hand all of it to the open transaction, and tie the claim to its end."""
        outputs.after_commit(self.claim.commit)
        outputs.after_abort(self.claim.discard)
        for topic, records in self.routed.items():
            outputs.produce_all(topic, records)
        for output in self.others:
            outputs.produce(*output)


@dataclass(slots=True)
class _Tally:
    """How many hits of a project met the same decisions."""

    project: str
    decisions: tuple[Decision, ...]
    hits: int = 0

    def add_to(self, counts: Counter[Entry]) -> None:
        counts[Entry(self.project, "", "unique")] += self.hits
        for decision in self.decisions:
            if decision.reason is None:
                counts[Entry(self.project, decision.connection, "routed")] += self.hits
            else:
                counts[Entry(self.project, decision.connection, "filtered", decision.reason.value)] += self.hits


class Preparer:
    """Holds what the configuration says, and the deduplicator whose stores follow the assignment."""

    def __init__(self, config: Config, deduplicator: Deduplicator) -> None:
        self._config = config
        self._deduplicator = deduplicator
        self._names = TopicNames(config.kafka.topic_prefix)
        self._plans = routing_plans(config)
        self._topics = {name: self._names.deliveries(name) for name in config.connections}

    def prepare(self, batch: Batch) -> Work:
        """Decide about every record of `batch`. The caller discards the claim if it never reaches the transaction."""
        work = Work(self._deduplicator.claim(), {topic: [] for topic in self._topics.values()}, [])
        try:
            for tp, records in batch.records.items():
                self._partition(work, tp, records, batch.next_offsets[tp])
        except BaseException:
            work.claim.discard()
            raise
        for block in work.claim.blocks():
            value = encode_seen_block(block.joined, block.first_ms, block.last_ms)
            # Its time is the raw records' own, so that retention follows the window and not the time of routing.
            work.others.append(
                Output(self._names.seen_hits, value, b"%d" % block.partition, block.partition, None, block.last_ms)
            )
        return work

    def _partition(self, work: Work, tp: TP, records: Sequence[Message], next_offset: int) -> None:
        counts: Counter[Entry] = Counter()
        hits: list[RawHit] = []
        digests: list[bytes] = []
        appended: list[int] = []
        topic, partition = tp
        partitions, plans = self._config.kafka.partitions, self._plans
        for record in records:
            found = classify_raw(
                record.value(),
                record.key(),
                record.headers(),  # type: ignore[arg-type] # a list, whatever the stub says
                topic,
                partition,
                record.offset() or 0,
                partitions,
                plans,
            )
            if type(found) is RawHit:
                hits.append(found)
                digests.append(dedupe_id(found.project, found.hit_id))
                appended.append(record.timestamp()[1])
            elif type(found) is Rekey:
                work.others.append(Output(topic, record.value(), found.key, found.partition, found.headers))
                counts[Entry("", "", "rekeyed")] += 1
            elif type(found) is Dead:
                work.others.append(self._dead_letter(record, tp, found))
                counts[Entry(found.project, "", "received")] += 1
                counts[Entry(found.project, "", "dead", found.reason)] += 1
        for project, received in Counter(raw.project for raw in hits).items():
            counts[Entry(project, "", "received")] += received
        new = self._deduplicator.classify(work.claim, partition, digests, appended)
        self._route(work, hits, new, appended, counts)
        first_offset = records[0].offset() or 0
        entry = LedgerEntry("route", topic, partition, first_offset, next_offset, round(time.time() * 1000), counts)
        work.others.append(Output(self._names.ledger, encode_ledger_entry(entry), b"%d" % partition))

    def _route(
        self,
        work: Work,
        hits: list[RawHit],
        new: list[bool],
        appended: list[int],
        counts: Counter[Entry],
    ) -> None:
        # Connections share few sets of decisions: count sets, not connections.
        tallies: dict[int, _Tally] = {}
        settings, topics, routed = self._config.enrich, self._topics, work.routed
        for raw, is_new, appended_ms in zip(hits, new, appended, strict=True):
            project = raw.project
            if not is_new:
                counts[Entry(project, "", "duplicate")] += 1
                continue
            hit = raw.hit
            plan = self._plans[project]
            decisions = plan.decide(hit.integrations_raw, hit.integrations)
            tally = tallies.get(id(decisions))
            if tally is None:
                tally = tallies[id(decisions)] = _Tally(project, decisions)
            tally.hits += 1
            for name in plan.unknown_names(hit.integrations) if hit.integrations.entries else ():
                counts[Entry(project, "", "unknown_integration", name[:128])] += 1
            received_ms = raw.received_at_ms if raw.received_at_ms is not None else appended_ms
            received_at = time_text(received_ms)
            facts = RequestFacts(raw.request_ip)
            sent_at = received_at
            if hit.sent_at is not None:
                normal = normal_time(hit.sent_at)
                if normal is None:
                    facts.flags = [FLAG_SENT_AT]
                    facts.sent_at_text = hit.sent_at
                else:
                    sent_at = normal
            start = encode_routed_hit(
                hit, raw.hit_id, project, received_at, sent_at, enrich(hit.context, facts, settings)
            )
            plain = start + END
            key = hit.identity.encode()
            for decision in decisions:
                if decision.reason is None:
                    value = plain if decision.options is None else start + options_tail(decision.options)
                    routed[topics[decision.connection]].append((value, key))
        for tally in tallies.values():
            tally.add_to(counts)

    def _dead_letter(self, record: Message, tp: TP, dead: Dead) -> Output:
        letter = DeadLetter(
            "route",
            dead.reason,
            dead.message,
            tp.topic,
            tp.partition,
            record.offset() or 0,
            round(time.time() * 1000),
            project=dead.project,
            path=dead.path,
        )
        return Output(self._names.dead_letters, record.value(), record.key(), -1, letter.headers())
