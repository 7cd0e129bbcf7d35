"""Dead letters: which there are, what they hold, and sending them again once the cause is mended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from confluent_kafka import Consumer, Message, TopicPartition

from pipeline.codec.ledger_entry import Entry, LedgerEntry, decode_ledger_entry, encode_ledger_entry
from pipeline.codec.raw_record import DOOR, PUBLIC, REPLAY_ID, REPLAY_TO, Headers
from pipeline.config.models import Config
from pipeline.errors import OutcomeUnknown, TransactionAborted, WorkerMustRestart
from pipeline.kafka.client import client_properties
from pipeline.kafka.patience import PATIENCE_SECONDS
from pipeline.kafka.topics import TopicNames
from pipeline.kafka.transactions import TransactionalProducer
from pipeline.operations.read_topic import header_texts, read_topic

REPLAY: Literal["replay"] = "replay"
_BATCH, _BATCH_BYTES = 500, 16_000_000
_ORIGIN_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter; `position` is `partition-offset` in the topic, `at_ms` when it was written."""

    partition: int
    offset: int
    stage: str
    reason: str
    message: str
    path: str
    connection: str
    project: str
    origin: TopicPartition
    at_ms: int
    key: bytes | None
    value: bytes | None
    replayed: bool = False
    is_public: bool = False
    """Whether the hit came in by a public door; letters of older releases do not say it."""

    @property
    def position(self) -> str:
        """Names it on the command line."""
        return f"{self.partition}-{self.offset}"


@dataclass(slots=True)
class Group:
    """Letters of one cause: their number and one of them, since all of them may not fit into memory."""

    first: Letter
    letters: int = 0
    replayed: int = 0
    last_ms: int = 0

    def add(self, letter: Letter) -> None:
        """One more."""
        self.letters += 1
        self.replayed += letter.replayed
        self.last_ms = max(self.last_ms, letter.at_ms)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; None and empty: all. `positions` names single ones."""

    connection: str | None = None
    reason: str | None = None
    project: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    positions: frozenset[str] = frozenset()

    def takes(self, letter: Letter) -> bool:
        """Is this one meant?"""
        return (
            (self.connection is None or letter.connection == self.connection)
            and (self.reason is None or letter.reason == self.reason)
            and (self.project is None or letter.project == self.project)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
            and (not self.positions or letter.position in self.positions)
        )


def read_letters(config: Config, wanted: Filter = Filter(), settled: bool = False) -> Iterator[Letter]:
    """The letters that are there now, oldest first within each partition; those that were sent again are marked.

    With `settled` no mark is missing, though workers write to the ledger meanwhile.
    """
    names = TopicNames(config.kafka.topic_prefix)
    again = _sent_positions(config, settled)
    for record in read_topic(config.kafka, names.dead_letters):
        letter = _letter(record, again)
        if wanted.takes(letter):
            yield letter


def _sent_positions(config: Config, settled: bool) -> set[tuple[int, int]]:
    """Partition and offset of each letter that the ledger notes as sent again."""
    notes = read_topic(config.kafka, TopicNames(config.kafka.topic_prefix).ledger, settled=settled)
    entries = (decode_ledger_entry(record.value() or b"") for record in notes)
    return {(entry.partition, entry.first_offset) for entry in entries if entry.role == REPLAY}


def _letter(record: Message, again: set[tuple[int, int]]) -> Letter:
    headers = header_texts(record)
    partition, offset = record.partition() or 0, record.offset() or 0
    origin_partition, origin_offset = headers.get("origin-partition", ""), headers.get("origin-offset", "")
    return Letter(
        partition,
        offset,
        headers.get("stage", ""),
        headers.get("reason", ""),
        headers.get("message", ""),
        headers.get("path", ""),
        headers.get("connection", ""),
        headers.get("project", ""),
        TopicPartition(
            headers.get("origin-topic", ""),
            int(origin_partition) if origin_partition.isdigit() else 0,
            int(origin_offset) if origin_offset.isdigit() else -1,
        ),
        record.timestamp()[1],
        record.key(),
        record.value(),
        (partition, offset) in again,
        headers.get(DOOR) == PUBLIC.decode(),
    )


def replay_letters(
    config: Config, wanted: Filter = Filter(), told: Callable[[int], None] = lambda sent: None
) -> Counter[str]:
    """Send letters again, each where it failed; what was sent again before is left out. Counts by what was done.

    A hit that was no hit goes to hits-raw; a hit that one connection did not get goes to that connection alone. The record
    and the note that it was sent are one transaction, so an interrupted replay can be started again. Of two at once the later
    one fences the earlier one off before it reads what that has sent, and goes on: the earlier one raises WorkerMustRestart.
    """
    names = TopicNames(config.kafka.topic_prefix)
    producer = TransactionalProducer(config.kafka, f"{names.prefix}dead-letters-replay")
    producer.initialise(PATIENCE_SECONDS)
    origins = _Origins(config)
    done: Counter[str] = Counter()
    try:
        batch: list[Letter] = []
        held_bytes = 0
        for letter in read_letters(config, wanted, settled=True):
            if letter.replayed:
                done["sent again before"] += 1
                continue
            batch.append(letter)
            held_bytes += len(letter.value or b"")
            if len(batch) == _BATCH or held_bytes >= _BATCH_BYTES:
                done += _replay_batch(config, producer, origins, batch)
                told(done.total())
                batch, held_bytes = [], 0
        if batch:
            done += _replay_batch(config, producer, origins, batch)
            told(done.total())
    except WorkerMustRestart as error:
        raise WorkerMustRestart(
            f"this replay has ended early: {error}. If another one has begun meanwhile, let that one end; then start this "
            "one again: what was sent is left out"
        ) from error
    finally:
        producer.close()
        origins.close()
    return done


def _replay_batch(
    config: Config, producer: TransactionalProducer, origins: _Origins, letters: Sequence[Letter]
) -> Counter[str]:
    # Before the transaction, which the broker ends after a time: a batch of these may take longer.
    found = [None if letter.stage == "deliver" else origins.record(letter) for letter in letters]
    pause_seconds = 0.0
    while True:
        time.sleep(pause_seconds)
        pause_seconds = min(_LONGEST_PAUSE_SECONDS, pause_seconds * 2 or 0.1)
        try:
            producer.begin()
            done = _write(config, producer, letters, found)
        except TransactionAborted:
            producer.abort()
            continue
        try:
            producer.commit_alone()
        except OutcomeUnknown:
            if not _was_sent(config, letters):
                continue
        return done


def _was_sent(config: Config, letters: Sequence[Letter]) -> bool:
    """Says whether the ledger notes one of `letters` as sent: all notes of a batch are one transaction."""
    positions = {(letter.partition, letter.offset) for letter in letters}
    return not positions.isdisjoint(_sent_positions(config, settled=True))


def _write(
    config: Config, producer: TransactionalProducer, letters: Sequence[Letter], found: Sequence[Message | None]
) -> Counter[str]:
    """Produce the records and notes of `letters`; `found` holds the record that each comes from, where it is still there."""
    names = TopicNames(config.kafka.topic_prefix)
    done: Counter[str] = Counter()
    for letter, origin in zip(letters, found, strict=True):
        counts: Counter[Entry] = Counter()
        if letter.stage == "deliver":
            if letter.connection not in config.connections:
                done["its connection is gone"] += 1
                continue
            producer.produce(names.deliveries(letter.connection), letter.value, letter.key)
            counts[Entry(letter.project, letter.connection, "replayed")] += 1
            done["to its connection"] += 1
        else:
            headers: Headers = list(origin.headers() or ()) if origin is not None else []  # type: ignore[arg-type]
            if origin is None and letter.project:
                headers = [("project", letter.project), *([(DOOR, PUBLIC)] if letter.is_public else [])]
            if letter.connection:
                headers += [(REPLAY_TO, letter.connection), (REPLAY_ID, f"dead-letter-{letter.position}")]
            producer.produce(names.hits_raw, letter.value, letter.key, headers=headers)
            done["to its connection by the router" if letter.connection else "to hits-raw"] += 1
        entry = LedgerEntry(
            REPLAY,
            names.dead_letters,
            letter.partition,
            letter.offset,
            letter.offset + 1,
            round(time.time() * 1000),
            counts,
        )
        producer.produce(names.ledger, encode_ledger_entry(entry))
    return done


class _Origins:
    """The records that became dead letters, as long as hits-raw still has them: they hold the intake's facts."""

    def __init__(self, config: Config) -> None:
        self._hits_raw = TopicNames(config.kafka.topic_prefix).hits_raw
        self._consumer = Consumer(
            {
                **client_properties(config.kafka),
                "group.id": "hitrouter-read",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                # A question that finds nothing new at the end of the topic holds up the next one for so long.
                "fetch.wait.max.ms": 10,
            }
        )

    def record(self, letter: Letter) -> Message | None:
        """None when it is gone."""
        if letter.origin.topic != self._hits_raw or letter.origin.offset < 0:
            return None
        self._consumer.assign([letter.origin])
        deadline = time.monotonic() + _ORIGIN_SECONDS
        while time.monotonic() < deadline:
            message = self._consumer.poll(0.2)
            if message is not None:
                found = message.error() is None and message.offset() == letter.origin.offset
                return message if found and message.value() == letter.value else None
        return None

    def close(self) -> None:
        self._consumer.close()
