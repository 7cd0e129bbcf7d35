"""PostgreSQL: hits as rows of one table that hold each hit once, because its key is (project_id, hit_id).

The rows of a batch are parameters of INSERT ... SELECT FROM unnest(...): as fast as COPY into a staging table, which would need the right
TEMPORARY and a session of its own. Nothing outlives a transaction, so a pool may change the server connection between two of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql

from pipeline.destination import Delivered, Misconfigured, Rejected, Retry, Verdict
from pipeline.sinks.postgres_table import COLUMNS, KEY, fault_of_table, limit_seconds, names_of, prepare_table
from pipeline.sinks.postgres_verdict import UnfitTable, verdict_of
from pipeline.sinks.table_row import Row

logger = logging.getLogger("hitrouter.sinks.postgres")

_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 150.0
"""For a batch as a whole: the server's own time-out is of no use when the server, or the way to it, is gone without a word."""
_INSERT_BYTES = 16 << 20
"""Texts of one INSERT; the server copies them several times, and takes less than 1 GB."""


class PostgresSink:
    """One connection to the database at `dsn`, made when it is needed and made again after a failure."""

    def __init__(self, dsn: str, table: str, answer_seconds: float = _ANSWER_SECONDS) -> None:
        self._dsn = dsn
        self._table = sql.Identifier(*table.split("."))
        self._insert = _insert_into(self._table)
        self._answer_seconds = answer_seconds
        self._connection: psycopg.AsyncConnection | None = None

    async def write(self, rows: Sequence[Row]) -> Verdict:
        """Store the rows that the table does not have, in one transaction: one outcome for all of them.

        Rejected means that at least one of them can't be stored.
        """
        work = asyncio.create_task(self._write(rows))
        try:
            await asyncio.wait([work], timeout=self._answer_seconds)
        finally:
            if not work.done():
                # psycopg would wait for an answer to its cancellation, too.
                connection, self._connection = self._connection, None
                if connection is not None:
                    connection.pgconn.finish()
                work.cancel()
        return work.result() if work.done() else Retry("Timeout")

    async def _write(self, rows: Sequence[Row]) -> Verdict:
        try:
            connection = await self._connected()
        except (psycopg.Error, OSError, UnfitTable) as error:
            verdict = verdict_of(error)
            # Two workers that make the table at the same moment violate a unique key of PostgreSQL's own; no row is at fault.
            return Retry(type(error).__name__) if isinstance(verdict, Rejected) else verdict
        try:
            async with connection.transaction():
                await limit_seconds(connection)
                for part in _parts(rows):
                    await connection.execute(self._insert, [list(column) for column in zip(*part, strict=True)])
            return Delivered()
        except (psycopg.Error, OSError) as error:
            refusal = await self._verdict(connection, error)
            if not isinstance(refusal, Rejected):
                await self.close()
            return refusal

    async def _verdict(
        self, connection: psycopg.AsyncConnection, error: psycopg.Error | OSError
    ) -> Retry | Rejected | Misconfigured:
        verdict = verdict_of(error)
        if isinstance(verdict, Rejected) and isinstance(error, psycopg.Error):
            try:
                fault = await fault_of_table(connection, self._table, error)
            except (psycopg.Error, OSError) as lost:
                return Retry(type(lost).__name__)
            return Misconfigured(fault) if fault else verdict
        return verdict

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close()
            except (psycopg.Error, OSError):
                logger.debug("the connection was gone already")

    async def _connected(self) -> psycopg.AsyncConnection:
        if self._connection is None or self._connection.closed:
            connection = await psycopg.AsyncConnection.connect(
                self._dsn,
                connect_timeout=_CONNECT_SECONDS,
                autocommit=True,
                application_name="hitrouter",
                client_encoding="utf8",  # else a letter that the database lacks fails here, not as this row's error
                prepare_threshold=None,  # a prepared statement is bound to one connection of a pool
            )
            try:
                await self._prepare(connection)
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    async def _prepare(self, connection: psycopg.AsyncConnection) -> None:
        await prepare_table(connection, self._table)


def _insert_into(table: sql.Identifier) -> sql.Composed:
    """Return the INSERT whose parameters are the columns. Arrays of text in binary cost the least on both sides."""
    names = names_of(tuple(COLUMNS))
    values = sql.SQL(", ").join(
        sql.SQL("{}::" + kind).format(sql.Identifier(name))  # type: ignore[arg-type] # our own constants
        for name, kind in COLUMNS.items()
    )
    arrays = sql.SQL(", ").join([sql.SQL("%b::text[]")] * len(COLUMNS))
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM unnest({}) AS hit ({}) ON CONFLICT ({}) DO NOTHING").format(
        table, names, values, arrays, names, names_of(KEY)
    )


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield the rows in their order, cut where an INSERT would hold more than _INSERT_BYTES."""
    first = size = 0
    for number, row in enumerate(rows):
        more = sum(map(len, filter(None, row)))
        if size + more > _INSERT_BYTES and number > first:
            yield rows[first:number]
            first, size = number, 0
        size += more
    if rows[first:]:
        yield rows[first:]
