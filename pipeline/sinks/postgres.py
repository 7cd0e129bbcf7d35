"""Writes hits to a PostgreSQL table that holds each hit once, because its key is (project_id, hit_id).

The rows of a batch are parameters of INSERT ... SELECT FROM unnest(...). That is as fast as COPY into a staging table, which would
need the privilege TEMPORARY and its own session. No state outlives a transaction, so a pool can use another server connection
for each one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql

from pipeline.destination import Delivered, Misconfigured, Rejected, Retry, Verdict
from pipeline.sinks.postgres_errors import UnusableTable, outcome_of_error
from pipeline.sinks.postgres_table import (
    COLUMNS,
    KEY,
    name_list,
    prepare_table,
    set_statement_timeout,
    violated_table_constraint,
)
from pipeline.sinks.table_row import Row

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_SECONDS = 10
_BATCH_TIMEOUT_SECONDS = 150.0
"""For a whole batch. The server's own timeout does not help if the server or the network fails silently."""
_MAX_INSERT_BYTES = 16 << 20
"""Text of one INSERT. The server copies it several times, and accepts less than 1 GB."""


class PostgresSink:
    """Writes to one table of the database at `dsn`. Connects when needed, and again after an error."""

    def __init__(self, dsn: str, table: str, timeout_seconds: float = _BATCH_TIMEOUT_SECONDS) -> None:
        self._dsn = dsn
        self._table = sql.Identifier(*table.split("."))
        self._insert = _insert_statement(self._table)
        self._timeout_seconds = timeout_seconds
        self._connection: psycopg.AsyncConnection | None = None

    async def write(self, rows: Sequence[Row]) -> Verdict:
        """Store the rows that are not stored yet, in one transaction. Return one outcome for all.

        Rejected means that at least one row cannot be stored.
        """
        work = asyncio.create_task(self._write(rows))
        try:
            await asyncio.wait([work], timeout=self._timeout_seconds)
        finally:
            if not work.done():
                # Closes the socket first, because a cancelled psycopg call waits for the server's response to its cancel request.
                connection, self._connection = self._connection, None
                if connection is not None:
                    connection.pgconn.finish()
                work.cancel()
        return work.result() if work.done() else Retry("Timeout")

    async def _write(self, rows: Sequence[Row]) -> Verdict:
        try:
            connection = await self._connect()
        except (psycopg.Error, OSError, UnusableTable) as error:
            outcome = outcome_of_error(error)
            # Two workers that create the table at once violate a unique index of PostgreSQL's catalog; no row is at fault.
            return Retry(type(error).__name__) if isinstance(outcome, Rejected) else outcome
        try:
            async with connection.transaction():
                await set_statement_timeout(connection)
                for part in _split_rows(rows):
                    await connection.execute(self._insert, [list(column) for column in zip(*part, strict=True)])
            return Delivered()
        except (psycopg.Error, OSError) as error:
            failure = await self._outcome_of_insert_error(connection, error)
            if not isinstance(failure, Rejected):
                await self.close()
            return failure

    async def _outcome_of_insert_error(
        self, connection: psycopg.AsyncConnection, error: psycopg.Error | OSError
    ) -> Retry | Rejected | Misconfigured:
        outcome = outcome_of_error(error)
        if isinstance(outcome, Rejected) and isinstance(error, psycopg.Error):
            try:
                violated = await violated_table_constraint(connection, self._table, error)
            except (psycopg.Error, OSError) as query_error:
                return Retry(type(query_error).__name__)
            return Misconfigured(violated) if violated else outcome
        return outcome

    async def close(self) -> None:
        """Close the connection to the database."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close()
            except (psycopg.Error, OSError):
                logger.debug("closing failed, connection to PostgreSQL already lost")

    async def _connect(self) -> psycopg.AsyncConnection:
        """Return the open connection, or a new one whose table is prepared."""
        if self._connection is None or self._connection.closed:
            connection = await psycopg.AsyncConnection.connect(
                self._dsn,
                connect_timeout=_CONNECT_TIMEOUT_SECONDS,
                autocommit=True,
                application_name="hitrouter",
                client_encoding="utf8",  # a character that the database lacks must fail in the server, as this row's error
                prepare_threshold=None,  # a prepared statement belongs to one server connection of a pool
            )
            try:
                await self._prepare_table(connection)
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    async def _prepare_table(self, connection: psycopg.AsyncConnection) -> None:
        await prepare_table(connection, self._table)


def _insert_statement(table: sql.Identifier) -> sql.Composed:
    """Return the INSERT whose parameters are the columns, as binary arrays of text, which cost client and server the least CPU."""
    names = name_list(tuple(COLUMNS))
    values = sql.SQL(", ").join(
        sql.SQL("{}::" + kind).format(sql.Identifier(name))  # type: ignore[arg-type] # constants
        for name, kind in COLUMNS.items()
    )
    arrays = sql.SQL(", ").join([sql.SQL("%b::text[]")] * len(COLUMNS))
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM unnest({}) AS hit ({}) ON CONFLICT ({}) DO NOTHING").format(
        table, names, values, arrays, names, name_list(KEY)
    )


def _split_rows(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield the rows in their order, in parts of at most _MAX_INSERT_BYTES; a larger row is a part alone."""
    first = total = 0
    for number, row in enumerate(rows):
        size = sum(map(len, filter(None, row)))
        if total + size > _MAX_INSERT_BYTES and number > first:
            yield rows[first:number]
            first, total = number, 0
        total += size
    if rows[first:]:
        yield rows[first:]
