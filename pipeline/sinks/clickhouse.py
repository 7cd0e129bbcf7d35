"""Writes hits to a ClickHouse table that holds each record of a topic once, without unique keys and without FINAL.

The rows of a partition form one chain. An insert begins after the highest stored offset. Its deduplication token is topic, partition
and first offset. After the insert the sink reads which offsets are stored.

- After kill -9 the next writer begins after the highest stored offset.
- Two writers can insert at the same offset: a zombie, a rebalance, a retry after a lost response. The server keeps the first insert.
  The other writer reads where that one ended, and continues there, also if their batches differ.
- A row that the server refuses is found by halving the insert. That happens here, because Attempts would send the second half before
  the first half is decided. Such a row leaves a gap below the highest offset; a new writer inserts rows of a gap again, one by one.
- An insert is one block, which MergeTree stores atomically. With PARTITION BY it would be several blocks, so the table must not have it.

Limit: the table remembers the tokens of its last 10,000 inserts. A zombie that sleeps for longer between its read and its insert could
still duplicate its batch, because ClickHouse has no atomic compare-and-insert.
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
from pipeline.sinks.clickhouse_table import ACCESS_DENIED, COLUMNS, UnusableTable, prepare_table
from pipeline.sinks.table_row import Row

logger = logging.getLogger(__name__)

# Keeps the client from importing pandas, if installed, to check whether rows are a DataFrame: a second and 60 MB per worker.
options.pd = None

_CHECK = "check url, user, password, database and table"
_FIRST_MS = round(datetime(1900, 1, 1, tzinfo=UTC).timestamp() * 1000)
_LAST_MS = round(datetime(2300, 1, 1, tzinfo=UTC).timestamp() * 1000) - 1
_MAX_INSERT_BYTES = 64 << 20  # below min_insert_block_size_bytes (256 MiB), so that an insert stays one block
_CONNECT_TIMEOUT_SECONDS, _TIMEOUT_SECONDS = 10, 60
# Codes of ClickHouse's ErrorCodes.cpp that the operator must fix: unknown column, table or database, type mismatch, access,
# authentication.
_OPERATOR_CODES = frozenset({16, 20, 44, 47, 48, 53, 60, 80, 81, 164, 192, 193, 194, 495, 497, 516})
# Codes that a value causes: invalid text, date or number, out of range, too large, NULL, unknown element of an enum, a constraint, a
# throwIf.
_DATA_CODES = frozenset({6, 26, 27, 38, 41, 69, 70, 72, 117, 131, 321, 349, 395, 407, 469, 691})


class Record(NamedTuple):
    """A row, and the position of its record on the topic."""

    partition: int
    offset: int
    row: Row


def values_of(record: Record, topic: str) -> tuple[Any, ...] | Rejected:
    """Return the values in the order of COLUMNS, with times as Unix milliseconds; Rejected if DateTime64(3) cannot hold a time."""
    row = record.row
    received_ms, sent_ms = read_time(row.received_at), read_time(row.sent_at)
    if received_ms is None or sent_ms is None:
        return Rejected("not_storable", "received_at or sent_at is not a time")
    if not (_FIRST_MS <= received_ms <= _LAST_MS and _FIRST_MS <= sent_ms <= _LAST_MS):
        return Rejected("not_storable", "ClickHouse cannot store a time outside 1900 to 2299")
    return (row.project_id, row.hit_id, received_ms, sent_ms, *row[4:], topic, record.partition, record.offset)


class ClickHouseSink:
    """Writes one topic to one table. Its methods block; call one at a time."""

    def __init__(self, url: str, user: str, password: str, database: str, table: str, topic: str) -> None:
        self._url, self._user, self._password, self._database = url, user, password, database
        self._name, self._table = table, f"`{database}`.`{table}`"
        self._topic = topic
        self._client: Client | None = None
        self._highest_offsets: dict[int, int] = {}
        """Highest stored offset by partition."""

    def invalidate_offsets(self) -> None:
        """Drop the cached offsets, because another worker may have written since; the next write reads them from the table."""
        self._highest_offsets = {}

    def close(self) -> None:
        """Close the connection to the server."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def write(self, records: Sequence[Record]) -> list[Outcome]:
        """Store those records of one partition, in offset order, that are not stored yet. Return one outcome for each.

        A row that the server refuses is Rejected and does not affect others. On any other error all undecided rows are Retry or
        Misconfigured.
        """
        outcomes: dict[int, Outcome] = {}
        rows: list[tuple[Any, ...]] = []
        for record in records:
            values = values_of(record, self._topic)
            if isinstance(values, Rejected):
                outcomes[record.offset] = values
            else:
                rows.append(values)
        outcome_of_others: Outcome = Delivered()
        try:
            if rows:
                self._write_missing(records[0].partition, rows, outcomes)
        except (ClickHouseError, OSError, UnusableTable) as error:
            outcome_of_others = outcome_of_error(error)
            # The outcome, not the error: the server's message can hold values of rows.
            logger.debug("insert failed: table=%s error=%s", self._table, outcome_of_others)
            self.invalidate_offsets()
            self.close()
        return [outcomes.get(record.offset, outcome_of_others) for record in records]

    def _write_missing(self, partition: int, rows: Sequence[tuple[Any, ...]], outcomes: dict[int, Outcome]) -> None:
        """Insert the rows that are not stored yet, and add final outcomes by offset. Raises the error that stops the other rows."""
        # Another thread can call `invalidate_offsets` during this write. It replaces the dict, so the results of this write are discarded.
        highest_offsets = self._highest_offsets
        first, last = rows[0][-1], rows[-1][-1]
        highest, stored = highest_offsets.get(partition, first), set[int]()
        if highest >= first:
            highest, stored = self._stored_offsets(partition, first, last, rows[0][1])
        size = len(rows)
        while True:
            outcomes.update(dict.fromkeys(stored, Delivered()))
            rest = [values for values in rows if values[-1] not in outcomes]
            if not rest:
                break
            # A row in a gap is inserted alone, so that the insert holds no row that another writer has stored.
            part = rest[:1] if rest[0][-1] < highest else _within_insert_limit(rest)[:size]
            try:
                self._insert(partition, part)
            except ClickHouseError as error:
                outcome = outcome_of_error(error)
                if not isinstance(outcome, Rejected):
                    raise
                size = max(1, len(part) // 2)
                if len(part) == 1:
                    outcomes[part[0][-1]] = outcome
                continue
            size *= 2
            highest, stored = self._stored_offsets(partition, first, last, rows[0][1])
            if part[0][-1] not in stored:
                raise OSError(
                    "ClickHouse dropped rows as repeats, but the table does not hold them; were they deleted?"
                )
        highest_offsets[partition] = max(highest, last)

    def _stored_offsets(self, partition: int, first: int, last: int, hit_id: str) -> tuple[int, set[int]]:
        """Return the highest stored offset (`first` - 1 if it is lower), and the stored offsets from `first` to `last`.

        Offsets below `first` are not read, which keeps the query cheap (index on _offset). Raises UnusableTable if another hit than
        `hit_id` is stored at `first`.
        """
        found = self._get_client().command(
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
            raise UnusableTable(
                f"the table {self._table} holds another hit at {self._topic}-{partition}, offset {first}. "
                "If the topic was recreated, configure another table"
            )
        return (int(highest) if int(count) else first - 1), set(json.loads(offsets))

    def _insert(self, partition: int, rows: Sequence[tuple[Any, ...]]) -> None:
        self._get_client().insert(
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

    def _get_client(self) -> Client:
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
                connect_timeout=_CONNECT_TIMEOUT_SECONDS,
                send_receive_timeout=_TIMEOUT_SECONDS,
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


_strings = itemgetter(*(position for position, kind in enumerate(COLUMNS.values()) if "String" in kind))


def _within_insert_limit(rows: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    """Return the first rows, as many as fit into _MAX_INSERT_BYTES, but at least one."""
    total = 0
    for number, row in enumerate(rows):
        total += sum(map(len, filter(None, _strings(row))))
        if total > _MAX_INSERT_BYTES and number:
            return rows[:number]
    return rows


def outcome_of_error(error: ClickHouseError | OSError | UnusableTable) -> Retry | Rejected | Misconfigured:
    """Return the outcome of `error`. Its message holds no value of a row."""
    if isinstance(error, UnusableTable):
        return Misconfigured(str(error))
    code = getattr(error, "code", None)
    name = getattr(error, "name", None) or type(error).__name__
    if code in _DATA_CODES:
        # The rest of the server's message holds values of the row.
        constraint = re.search(r"Constraint `([^`]+)`", str(error))
        which = f", constraint {constraint[1]}" if constraint else ""
        return Rejected("not_storable", f"ClickHouse refuses the row: {name} (code {code}){which}")
    if code in _OPERATOR_CODES:
        action = "GRANT INSERT, SELECT ON the table" if code == ACCESS_DENIED else _CHECK
        return Misconfigured(f"ClickHouse refuses: {name} (code {code}); {action}")
    return Retry(str(error) if type(error) is OSError else f"{name} {code or ''}".strip())
