"""Reads dead letters and replays them once their cause is fixed."""

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
"""Limits of one transaction: dead letters, and bytes of their values."""
_ORIGIN_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """One dead letter as read from the topic; `at_ms` is when it was written, in milliseconds since 1970."""

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
    """Whether the hit came in by a public door; False for dead letters of older releases, which do not record it."""

    @property
    def position(self) -> str:
        """`partition-offset`, which identifies it on the command line."""
        return f"{self.partition}-{self.offset}"


@dataclass(slots=True)
class DeadLetterGroup:
    """Dead letters with one cause: their number and one example, since all of them might not fit into memory."""

    first: StoredDeadLetter
    count: int = 0
    replayed: int = 0
    last_ms: int = 0

    def add(self, letter: StoredDeadLetter) -> None:
        """Count one more dead letter."""
        self.count += 1
        self.replayed += letter.replayed
        self.last_ms = max(self.last_ms, letter.at_ms)


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Selects dead letters. None or an empty set means no restriction; `positions` selects single ones."""

    connection: str | None = None
    reason: str | None = None
    project: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    positions: frozenset[str] = frozenset()

    def selects(self, letter: StoredDeadLetter) -> bool:
        """Return whether `letter` is selected."""
        return (
            (self.connection is None or letter.connection == self.connection)
            and (self.reason is None or letter.reason == self.reason)
            and (self.project is None or letter.project == self.project)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
            and (not self.positions or letter.position in self.positions)
        )


def read_dead_letters(
    config: Config, wanted: DeadLetterFilter = DeadLetterFilter(), settled: bool = False
) -> Iterator[StoredDeadLetter]:
    """Yield the selected dead letters of the topic, in offset order within each partition; replayed ones are marked.

    `settled` waits for open transactions of the ledger first. Otherwise a dead letter that is being replayed may not be marked yet.
    """
    names = TopicNames(config.kafka.topic_prefix)
    replayed = _replayed_positions(config, settled)
    for record in read_topic(config.kafka, names.dead_letters):
        letter = _stored_dead_letter(record, replayed)
        if wanted.selects(letter):
            yield letter


def _replayed_positions(config: Config, settled: bool) -> set[tuple[int, int]]:
    """Return partition and offset of each dead letter that the ledger records as replayed."""
    records = read_topic(config.kafka, TopicNames(config.kafka.topic_prefix).ledger, settled=settled)
    entries = (decode_ledger_entry(record.value() or b"") for record in records)
    return {(entry.partition, entry.first_offset) for entry in entries if entry.role == REPLAY}


def _stored_dead_letter(record: Message, replayed: set[tuple[int, int]]) -> StoredDeadLetter:
    headers = header_texts(record)
    partition, offset = record.partition() or 0, record.offset() or 0
    origin_partition, origin_offset = headers.get("origin-partition", ""), headers.get("origin-offset", "")
    return StoredDeadLetter(
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
        (partition, offset) in replayed,
        headers.get(DOOR) == PUBLIC.decode(),
    )


def replay_dead_letters(
    config: Config, wanted: DeadLetterFilter = DeadLetterFilter(), progress: Callable[[int], None] = lambda sent: None
) -> Counter[str]:
    """Send each selected dead letter back to where it failed, unless it was replayed before. Returns counts by action.

    A record that was not a valid hit goes to hits-raw. A hit that failed at one connection goes only to that connection.
    The record and its ledger entry are one transaction, so an interrupted replay can be started again. If two replays run
    at once, the later one fences the earlier one before it reads the ledger; the earlier one raises WorkerMustRestart.
    `progress` receives the number of dead letters handled so far.
    """
    names = TopicNames(config.kafka.topic_prefix)
    producer = TransactionalProducer(config.kafka, f"{names.prefix}dead-letters-replay")
    producer.initialise(PATIENCE_SECONDS)
    origins = _OriginReader(config)
    done: Counter[str] = Counter()
    try:
        batch: list[StoredDeadLetter] = []
        held_bytes = 0
        for letter in read_dead_letters(config, wanted, settled=True):
            if letter.replayed:
                done["replayed before"] += 1
                continue
            batch.append(letter)
            held_bytes += len(letter.value or b"")
            if len(batch) == _BATCH or held_bytes >= _BATCH_BYTES:
                done += _replay_batch(config, producer, origins, batch)
                progress(done.total())
                batch, held_bytes = [], 0
        if batch:
            done += _replay_batch(config, producer, origins, batch)
            progress(done.total())
    except WorkerMustRestart as error:
        raise WorkerMustRestart(
            f"this replay has ended early: {error}. If another replay is running, wait until it ends. Then start this one "
            "again; it skips what is already replayed"
        ) from error
    finally:
        producer.close()
        origins.close()
    return done


def _replay_batch(
    config: Config, producer: TransactionalProducer, origins: _OriginReader, letters: Sequence[StoredDeadLetter]
) -> Counter[str]:
    # Read before the transaction begins: 500 reads can take longer than the broker's transaction timeout.
    found = [None if letter.stage == "deliver" else origins.read(letter) for letter in letters]
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
            if not _was_replayed(config, letters):
                continue
        return done


def _was_replayed(config: Config, letters: Sequence[StoredDeadLetter]) -> bool:
    """Return whether the ledger records one of `letters` as replayed; one means all, as a batch is one transaction."""
    positions = {(letter.partition, letter.offset) for letter in letters}
    return not positions.isdisjoint(_replayed_positions(config, settled=True))


def _write(
    config: Config,
    producer: TransactionalProducer,
    letters: Sequence[StoredDeadLetter],
    found: Sequence[Message | None],
) -> Counter[str]:
    """Produce the records and ledger entries of `letters`. `found` holds the original record of each, None if deleted."""
    names = TopicNames(config.kafka.topic_prefix)
    done: Counter[str] = Counter()
    for letter, origin in zip(letters, found, strict=True):
        counts: Counter[Entry] = Counter()
        if letter.stage == "deliver":
            if letter.connection not in config.connections:
                done["skipped: the connection is not in the file"] += 1
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
            done["to its connection via the router" if letter.connection else "to hits-raw"] += 1
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


class _OriginReader:
    """Reads the original records of dead letters from hits-raw, for the headers that the intake wrote."""

    def __init__(self, config: Config) -> None:
        self._hits_raw = TopicNames(config.kafka.topic_prefix).hits_raw
        self._consumer = Consumer(
            {
                **client_properties(config.kafka),
                "group.id": "hitrouter-read",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                # A fetch at the end of a partition waits this long, and delays the next one.
                "fetch.wait.max.ms": 10,
            }
        )

    def read(self, letter: StoredDeadLetter) -> Message | None:
        """Return the original record, or None if hits-raw no longer holds it."""
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
