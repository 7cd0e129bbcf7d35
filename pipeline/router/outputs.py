"""Turns the results of a batch into the outputs of its transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from confluent_kafka import Message

from pipeline.codec.dead_letter import DeadLetter
from pipeline.codec.ledger_entry import REASON_BYTES
from pipeline.codec.printable import shorten_bytes
from pipeline.codec.raw_record import RECEIVED_AT, REPLAY_ID, Headers, is_public
from pipeline.kafka.topics import TopicNames
from pipeline.router.results import (
    INVALID_OPTIONS,
    DeadLettered,
    Duplicate,
    OtherResult,
    Rekeyed,
    Replayed,
    ReplaySkipped,
    Routed,
)
from pipeline.router.work import Output, Work
from pipeline.stages.classify import Dead, Rekey

CONFIG_VERSION = "config-version"
PLAN_VIOLATION_HEADER = "plan-violation"
"""Headers of a routed hit: the configuration version that routed it, and the path of its tracking plan violation."""


class OutputWriter:
    """Adds outputs to the work of a batch. `now_ms` returns the time in Unix milliseconds."""

    def __init__(self, names: TopicNames, connections: Iterable[str], version: str, now_ms: Callable[[], int]) -> None:
        self.topics = {name: names.deliveries(name) for name in connections}
        """The topic of each connection."""
        self.headers: Headers = [(CONFIG_VERSION, version)]
        """The headers of every routed hit."""
        self._dead_letters = names.dead_letters
        self._now_ms = now_ms

    def add(self, work: Work, record: Message, result: OtherResult) -> None:
        """Add the outputs of any result but a routed hit to `work`; `record` is the raw record it comes from."""
        match result:
            case Duplicate(project=project, is_conflicting=True):
                work.conflicting[project] += 1
            case DeadLettered(dead=dead):
                work.dead_letters.append(self._dead_letter(record, dead))
            case Rekeyed(rekey=rekey):
                work.others.append(_written_back(record, rekey))
            case Replayed(raw=raw, value=value):
                headers = [*self.headers, (REPLAY_ID, raw.replay_id)]
                topic = self.topics[raw.replay_to or ""]
                work.others.append(Output(topic, value, raw.hit.identity.encode(), -1, headers))
            case ReplaySkipped(dead=dead, connection=connection) if dead is not None:
                work.dead_letters.append(self._dead_letter(record, dead, connection))

    def add_routed(self, work: Work, record: Message, result: Routed) -> None:
        """Add the outputs of a routed hit."""
        raw, hit, topics = result.raw, result.hit, self.topics
        if raw.hit.integrations.entries:
            for decision in hit.decisions:
                if decision.fault is not None:
                    dead = Dead(INVALID_OPTIONS, decision.fault.message, decision.fault.path, raw.project)
                    work.dead_letters.append(self._dead_letter(record, dead, decision.connection))
        key = raw.hit.identity.encode()
        if hit.violation is None:
            by_topic = work.routed
            for connections, value in result.values:
                output = (value, key)
                for connection in connections:
                    by_topic[topics[connection]].append(output)
        else:
            path = shorten_bytes(hit.violation.path, REASON_BYTES)
            headers = [*self.headers, (PLAN_VIOLATION_HEADER, path)]
            for connections, value in result.values:
                work.others.extend(Output(topics[name], value, key, -1, headers) for name in connections)

    def _dead_letter(self, record: Message, dead: Dead, connection: str = "") -> Output:
        dead_letter = DeadLetter(
            "route",
            dead.reason,
            dead.message,
            record.topic() or "",
            record.partition() or 0,
            record.offset() or 0,
            self._now_ms(),
            connection,
            project=dead.project,
            path=dead.path,
            is_public=is_public(record.headers()),  # type: ignore[arg-type] # a list; the type stub is wrong
        )
        return Output(self._dead_letters, record.value(), record.key(), -1, dead_letter.headers())


def _written_back(record: Message, found: Rekey) -> Output:
    headers = found.headers
    if not found.is_dated:
        headers = [*headers, (RECEIVED_AT, b"%d" % record.timestamp()[1])]
    return Output(record.topic() or "", record.value(), found.key, found.partition, headers)
