"""PostgreSQL: hits as rows of one table that hold each hit once, because its key is (project_id, hit_id)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence

import psycopg
from psycopg import sql

from pipeline.destination import Delivered, Misconfigured, Rejected, Retry, Verdict
from pipeline.sinks.table_row import Row

logger = logging.getLogger("hitrouter.sinks.postgres")

COLUMNS = {
    "project_id": "text NOT NULL",
    "hit_id": "text NOT NULL",
    "received_at": "timestamptz NOT NULL",
    "sent_at": "timestamptz NOT NULL",
    "user_id": "text",
    "anonymous_id": "text",
    "event_name": "text",
    "event": "jsonb NOT NULL",
    "context": "jsonb NOT NULL",
    "integrations": "jsonb",
    "options": "jsonb",
}
"""The table; a column that it lacks is added, others are left alone."""
_KEY = "PRIMARY KEY (project_id, hit_id)"
_CONNECT_SECONDS = 10
_STATEMENT_MS = 60_000
_ANSWER_SECONDS = 150.0
"""For a batch as a whole: the server's own time-out is of no use when the server, or the way to it, is gone without a word."""
# Classes of SQLSTATE (PostgreSQL, appendix A): data, integrity, view's check, limit, what a trigger raises.
_DATA = ("22", "23", "44", "54", "P0")
_OPERATORS = ("0A", "28", "42", "3D", "3F")  # not supported, authorization, syntax or access, catalog, schema
_NO_TABLE = "55000"  # a view that takes no rows, for one
# Before a connection is there libpq gives no SQLSTATE; in other languages than English these are tried again.
_SAID = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
    "Servname not supported",  # a port that is none
    "permission denied",
)
_AWAY = (
    "Connection refused",
    "No such file or directory",
    "could not translate host name",
    "No route to host",
    "timeout expired",
    "server closed the connection",
    "is starting up",
    "is shutting down",
)
"""What libpq and a server that is not there yet say, for the operator who reads why a connection waits."""


class PostgresSink:
    """One connection to the database at `dsn`, made when it is needed and made again after a failure."""

    def __init__(self, dsn: str, table: str, answer_seconds: float = _ANSWER_SECONDS) -> None:
        self._dsn = dsn
        self._table = sql.Identifier(*table.split("."))
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
        except (psycopg.Error, OSError) as error:
            verdict = verdict_of(error)
            # Two workers that make the table at the same moment violate a unique key of PostgreSQL's own; no row is at fault.
            return Retry(type(error).__name__) if isinstance(verdict, Rejected) else verdict
        try:
            async with connection.transaction(), connection.cursor() as cursor:
                copy = sql.SQL("COPY hitrouter_staging ({}) FROM STDIN").format(_columns())
                async with cursor.copy(copy) as stream:
                    for row in rows:
                        await stream.write_row(row)
                insert = (
                    "INSERT INTO {} ({}) SELECT {} FROM hitrouter_staging ON CONFLICT (project_id, hit_id) DO NOTHING"
                )
                await cursor.execute(sql.SQL(insert).format(self._table, _columns(), _columns()))
            return Delivered()
        except (psycopg.Error, OSError) as error:
            verdict = verdict_of(error)
            if not isinstance(verdict, Rejected):
                await self.close()
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
                self._dsn, connect_timeout=_CONNECT_SECONDS, autocommit=True, application_name="hitrouter"
            )
            try:
                await self._prepare(connection)
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    async def _prepare(self, connection: psycopg.AsyncConnection) -> None:
        """The table as COLUMNS has it, and a staging table of this connection."""
        declared = sql.SQL(", ").join(
            sql.SQL("{} " + kind).format(sql.Identifier(name))  # type: ignore[arg-type] # our own constants
            for name, kind in COLUMNS.items()
        )
        await connection.execute(f"SET statement_timeout = {_STATEMENT_MS}")
        await connection.execute("SET client_min_messages = warning")
        await connection.execute(
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, " + _KEY + ")").format(self._table, declared)
        )
        for name, kind in COLUMNS.items():
            added = "ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} " + kind.removesuffix(" NOT NULL")
            await connection.execute(
                sql.SQL(added).format(self._table, sql.Identifier(name))  # type: ignore[arg-type] # our own constants
            )
        await connection.execute(
            sql.SQL("CREATE TEMP TABLE hitrouter_staging ({}) ON COMMIT DELETE ROWS").format(declared)
        )


def _columns() -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, COLUMNS))


def verdict_of(error: psycopg.Error | OSError) -> Retry | Rejected | Misconfigured:
    """Return what to do next; messages name no value of a row."""
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, psycopg.DataError) or state[:2] in _DATA:
        return Rejected("not_storable", f"PostgreSQL can't store it: {_without_values(error)}")
    if isinstance(error, psycopg.ProgrammingError) and not state:
        return Misconfigured("the dsn can't be read; write postgresql://user:password@host/database")
    if state[:2] in _OPERATORS or state == _NO_TABLE or (not state and any(said in str(error) for said in _SAID)):
        # These errors are about the statement, so what they quote are names. A trigger may use their codes for texts of its own.
        said = _without_values(error) if state and _is_raised_by_code(error) else _first_line(error)
        return Misconfigured(f"PostgreSQL refuses: {said}; check address, user, password and table")
    # Of a text that a stranger may have sent only what is ours.
    why = state or next((known for known in _AWAY if known in str(error)), "")
    return Retry(f"{type(error).__name__}{why and ': ' + why}")


def _without_values(error: psycopg.Error | OSError) -> str:
    """Return what the server said without values of a row: the name of the error, its text, the column or constraint.

    PostgreSQL puts a value behind a colon or into quotes. Names of tables, columns and constraints come in fields of their own. A
    error that a procedural language raised may hold anything, so only its name and code stay.
    """
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return f"{type(error).__name__}: {_COLON.split(_first_line(error))[0]}"
    diag, name = error.diag, f"{type(error).__name__} ({error.sqlstate})"
    if diag.message_primary is None or _is_raised_by_code(error):
        return name
    text = diag.message_primary
    for known in filter(None, (diag.column_name, diag.constraint_name, diag.table_name)):
        text = text.replace(f'"{known}"', known)
    return f"{name}: {_QUOTED.sub('…', _COLON.split(text)[0])}"


def _is_raised_by_code(error: psycopg.Error | OSError) -> bool:
    """Return whether a procedural language raised it (pl_exec.c, plperl.c, plpy_elog.c), or the server does not say who did."""
    return not isinstance(error, psycopg.Error) or (error.diag.source_file or "pl").startswith("pl")


_COLON = re.compile("\\s?[:\uff1a]")
_QUOTES = "\"'\u00ab\u00bb\u2018\u2019\u201c\u201d\u201e\u300c\u300d"
"""Of the languages that a server may speak."""
_QUOTED = re.compile(f"[{_QUOTES}].*[{_QUOTES}]")
"""From the first quote to the last one: a value may hold quotes itself."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
