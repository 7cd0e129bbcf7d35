"""ClickHouse: a table that holds each record of a topic once, without FINAL, although it has no unique keys.

The rows of a partition are one chain. An insert begins behind the highest offset that the table holds and its deduplication token is
topic, partition and first offset; then the table is asked how far it goes now. After kill -9 the next writer begins behind what is there.
Of two writers at the same place (a zombie, a rebalance, a repeat of an insert whose answer was lost) the server keeps the first; the
other one reads how far that went, and continues behind it, however differently they cut their batches. A row that the server refuses is
found by halving, here and not by Attempts, which would send the second half before the first is settled; it stays a hole below the
highest offset, so a writer that takes over tries what it misses there again, alone. An insert is one block, which MergeTree stores whole
or not at all; that is why the table must have no PARTITION BY. Bound: the token is remembered for 10,000 inserts of the table; a zombie
that sleeps longer between reading and sending could still double its batch, since ClickHouse has no insert that asks and writes at once.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver import options
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline.codec.routed_hit import read_time
from pipeline.destination import Delivered, Misconfigured, Outcome, Rejected, Retry
from pipeline.sinks.clickhouse_table import ACCESS_DENIED, COLUMNS, UnfitTable, prepare_table
from pipeline.sinks.table_row import Row

logger = logging.getLogger("hitrouter.sinks.clickhouse")

# Else it loads pandas, where that is installed, to see that rows are no DataFrame: a second and 60 MB in each worker.
options.pd = None

_CHECK = "check url, user, password, database and table"
_FIRST_MS = round(datetime(1900, 1, 1, tzinfo=UTC).timestamp() * 1000)
_LAST_MS = round(datetime(2300, 1, 1, tzinfo=UTC).timestamp() * 1000) - 1
_INSERT_BYTES = 64 << 20  # below min_insert_block_size_bytes (256 MiB), so that an insert stays one block
_CONNECT_SECONDS, _ANSWER_SECONDS = 10, 60
# Codes of ClickHouse's ErrorCodes.cpp. What names the operator: unknown column, table, database, type mismatch, access, authentication.
_OPERATORS = frozenset({16, 20, 44, 47, 48, 53, 60, 80, 81, 164, 192, 193, 194, 495, 497, 516})
# What names a value: unreadable text, date or number, out of range, too large, NULL, unknown element of an enum, a constraint, a throwIf.
_DATA = frozenset({6, 26, 27, 38, 41, 69, 70, 72, 117, 131, 321, 349, 395, 407, 469, 691})


class Record(NamedTuple):
    """A row, and where it stands on the topic."""

    partition: int
    offset: int
    row: Row


def values_of(record: Record, topic: str) -> tuple[Any, ...] | Rejected:
    """The values in the order of COLUMNS, times in ms as DateTime64(3) counts them; Rejected for one that it has not."""
    row = record.row
    received_ms, sent_ms = read_time(row.received_at), read_time(row.sent_at)
    if received_ms is None or sent_ms is None:
        return Rejected("not_storable", "received_at or sent_at is no time")
    if not (_FIRST_MS <= received_ms <= _LAST_MS and _FIRST_MS <= sent_ms <= _LAST_MS):
        return Rejected("not_storable", "ClickHouse can't store a time outside 1900 to 2299")
    return (row.project_id, row.hit_id, received_ms, sent_ms, *row[4:], topic, record.partition, record.offset)


class ClickHouseSink:
    """Writes one topic to one table. Blocking: one call at a time."""

    def __init__(self, url: str, user: str, password: str, database: str, table: str, topic: str) -> None:
        self._url, self._user, self._password, self._database = url, user, password, database
        self._name, self._table = table, f"`{database}`.`{table}`"
        self._topic = topic
        self._client: Client | None = None
        self._stored: dict[int, int] = {}

    def forget(self) -> None:
        """Another worker may have written meanwhile: ask the table again before the next insert."""
        self._stored = {}

    def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def write(self, records: Sequence[Record]) -> list[Outcome]:
        """Store records of one partition, in offset order, behind what is there: one outcome for each.

        What can't be stored now is Retry or Misconfigured; a row that the server refuses costs itself only.
        """
        outcomes: dict[int, Outcome] = {}
        rows: list[tuple[Any, ...]] = []
        for record in records:
            values = values_of(record, self._topic)
            if isinstance(values, Rejected):
                outcomes[record.offset] = values
            else:
                rows.append(values)
        pause: Outcome = Delivered()
        try:
            if rows:
                self._write_missing(records[0].partition, rows, outcomes)
        except (ClickHouseError, OSError, UnfitTable) as error:
            pause = verdict_of(error)
            logger.debug("an insert failed: %s", pause)  # the error itself may hold values of rows
            self.forget()
            self.close()
        return [outcomes.get(record.offset, pause) for record in records]

    def _write_missing(self, partition: int, rows: Sequence[tuple[Any, ...]], outcomes: dict[int, Outcome]) -> None:
        """Add the outcomes that last, by offset; raises what is in the way of the others."""
        stored = self._stored  # `forget` may come from another thread meanwhile; then what this one learns is old
        first, last = rows[0][-1], rows[-1][-1]
        highest, there = stored.get(partition, first), set[int]()
        if highest >= first:
            highest, there = self._held(partition, first, last, rows[0][1])
        size = len(rows)
        while True:
            outcomes.update(dict.fromkeys(there, Delivered()))
            rest = [values for values in rows if values[-1] not in outcomes]
            if not rest:
                break
            # A hole below what is there: only by itself is it no other writer's part of the chain.
            part = rest[:1] if rest[0][-1] < highest else _capped(rest)[:size]
            try:
                self._insert(partition, part)
            except ClickHouseError as error:
                verdict = verdict_of(error)
                if not isinstance(verdict, Rejected):
                    raise
                size = max(1, len(part) // 2)
                if len(part) == 1:
                    outcomes[part[0][-1]] = verdict
                continue
            size *= 2
            highest, there = self._held(partition, first, last, rows[0][1])
            if part[0][-1] not in there:
                raise OSError("ClickHouse took rows as repeats that the table does not hold; were they deleted?")
        stored[partition] = max(highest, last)

    def _held(self, partition: int, first: int, last: int, hit_id: str) -> tuple[int, set[int]]:
        """The highest offset that the table holds, `first` - 1 if none from there on, and those between `first` and `last`.

        Below `first` nobody asks, which keeps the question cheap (index on _offset). Raises UnfitTable when another hit than `hit_id`
        stands at `first`.
        """
        found = self._connected().command(
            "SELECT max(_offset), count(), groupArrayIf(_offset, _offset <= %(last)s), "
            f"countIf(_offset = %(first)s AND lower(hex(hit_id)) != %(id)s) FROM {self._table} "
            "WHERE _topic = %(topic)s AND _partition = %(partition)s AND _offset >= %(first)s",
            parameters={
                "topic": self._topic,
                "partition": partition,
                "first": first,
                "last": last,
                "id": hit_id.encode().hex(),
            },
        )
        highest, count, offsets, others = found  # type: ignore[misc] # a row of four
        if int(others):
            raise UnfitTable(
                f"the table {self._table} holds another hit at {self._topic}-{partition}, offset {first}: "
                "was the topic made anew? Name another table"
            )
        return (int(highest) if int(count) else first - 1), set(json.loads(offsets))

    def _insert(self, partition: int, rows: Sequence[tuple[Any, ...]]) -> None:
        self._connected().insert(
            self._table,
            rows,
            column_names=list(COLUMNS),
            column_type_names=list(COLUMNS.values()),
            settings={
                "insert_deduplication_token": f"{self._topic}-{partition}-{rows[0][-1]}",
                "insert_deduplicate": 1,
                "async_insert": 0,
            },
        )

    def _connected(self) -> Client:
        if self._client is None:
            parts = urlsplit(self._url)
            client = clickhouse_connect.get_client(
                host=parts.hostname,
                port=parts.port or (8443 if parts.scheme == "https" else 8123),
                secure=parts.scheme == "https",
                username=self._user,
                password=self._password,
                database=self._database,
                compress=False,
                connect_timeout=_CONNECT_SECONDS,
                send_receive_timeout=_ANSWER_SECONDS,
                autogenerate_session_id=False,
                query_retries=0,
            )
            try:
                prepare_table(client, self._database, self._name)
            except BaseException:
                client.close()
                raise
            self._client = client
        return self._client


_texts = itemgetter(*(place for place, kind in enumerate(COLUMNS.values()) if "String" in kind))


def _capped(rows: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    size = 0
    for number, row in enumerate(rows):
        size += sum(map(len, filter(None, _texts(row))))
        if size > _INSERT_BYTES and number:
            return rows[:number]
    return rows


def verdict_of(error: ClickHouseError | OSError | UnfitTable) -> Retry | Rejected | Misconfigured:
    """What to do next; messages name no value of a row."""
    if isinstance(error, UnfitTable):
        return Misconfigured(str(error))
    code = getattr(error, "code", None)
    name = getattr(error, "name", None) or type(error).__name__
    if code in _DATA:
        # The rest of the text holds values of the row.
        constraint = re.search(r"Constraint `([^`]+)`", str(error))
        which = f", constraint {constraint[1]}" if constraint else ""
        return Rejected("not_storable", f"ClickHouse refuses the row: {name} (code {code}){which}")
    if code in _OPERATORS:
        do = "GRANT INSERT, SELECT ON the table" if code == ACCESS_DENIED else _CHECK
        return Misconfigured(f"ClickHouse refuses: {name} (code {code}); {do}")
    return Retry(str(error) if type(error) is OSError else f"{name} {code or ''}".strip())
