"""The table of hits in PostgreSQL: reads the catalog, and creates only what is missing.

Reading the catalog needs no privilege on the table and no lock that blocks others. A complete table needs INSERT, and SELECT on the
key, which ON CONFLICT reads. ALTER TABLE requests an ACCESS EXCLUSIVE lock, and all readers queue behind that request. LOCK_TIMEOUT_MS
bounds their wait.
"""

from __future__ import annotations

from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from pipeline.sinks.postgres_errors import UnusableTable

COLUMNS: dict[str, LiteralString] = {
    "project_id": "text",
    "hit_id": "text",
    "received_at": "timestamptz",
    "sent_at": "timestamptz",
    "user_id": "text",
    "anonymous_id": "text",
    "event_name": "text",
    "event": "jsonb",
    "context": "jsonb",
    "integrations": "jsonb",
    "options": "jsonb",
}
"""Columns and their types. Missing columns are added, other columns stay unchanged."""
_REQUIRED = frozenset({"project_id", "hit_id", "received_at", "sent_at", "event", "context"})
"""Columns for which each hit has a value; NOT NULL if this sink creates the table."""
KEY = ("project_id", "hit_id")
STATEMENT_TIMEOUT_MS = 60_000
LOCK_TIMEOUT_MS = 1_000
"""Longest time that readers queue behind a change of the table."""

_TABLE_QUERY = """
SELECT c.relkind::text,
  ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
  ARRAY(SELECT a.attname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND NOT a.atthasdef AND a.attidentity = ''
          AND (a.attnotnull OR t.typnotnull) AND t.typdefault IS NULL),
  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
          AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = 2
          AND (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('project_id', 'hit_id')
               AND (a.attnum = i.indkey[0] OR a.attnum = i.indkey[1])) = 2),
  EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal AND tgenabled != 'D' AND tgtype & 7 = 7)
FROM pg_class c WHERE c.oid = to_regclass(%s)
"""
"""7 in tgtype: before, insert, each row (pg_trigger.h). Such a trigger can fill other columns."""
_VIOLATED_COLUMNS_QUERY = """
SELECT a.attname::text, a.attgenerated != '', EXISTS (
  SELECT FROM pg_trigger WHERE tgrelid = a.attrelid AND NOT tgisinternal AND tgenabled != 'D' AND tgtype & 7 = 7)
FROM pg_attribute a WHERE a.attrelid = to_regclass(%(table)s) AND (a.attname = %(column)s OR a.attnum = ANY (
  SELECT unnest(conkey) FROM pg_constraint WHERE conrelid = a.attrelid AND conname = %(constraint)s
  UNION ALL
  SELECT unnest(i.indkey::int2[]) FROM pg_index i JOIN pg_class n ON n.oid = i.indexrelid
  WHERE i.indrelid = a.attrelid AND n.relname = %(constraint)s AND i.indexprs IS NULL))
"""


class TableInfo(NamedTuple):
    """The catalog's description of a table."""

    kind: str
    """`relkind` of pg_class: r and p are tables, all others are views or similar."""
    columns: list[str]
    mandatory: list[str]
    """Columns for which an INSERT must have a value: NOT NULL without a default."""
    has_key: bool
    has_trigger: bool


def table_problem(info: TableInfo) -> str | None:
    """Return why the table cannot store hits, and what to do; None if it can, or if it only lacks columns that can be added."""
    if info.kind not in "rp":  # only the server knows whether a view accepts rows
        missing = missing_columns(info)
        return f"is not a table and lacks {', '.join(missing)}; configure another table" if missing else None
    if not info.has_key and set(KEY) <= set(info.columns):
        return (
            "has no unique index on (project_id, hit_id), so repeats would be stored twice; "
            "run: CREATE UNIQUE INDEX CONCURRENTLY ON it (project_id, hit_id)"
        )
    unfilled = [name for name in info.mandatory if name not in COLUMNS]
    if unfilled and not info.has_trigger:
        return f"requires a value for {', '.join(unfilled)}, which no hit has; set a default, or drop NOT NULL"
    return None


def missing_columns(info: TableInfo) -> list[str]:
    """Return the names of COLUMNS that the table lacks."""
    return [name for name in COLUMNS if name not in info.columns]


async def prepare_table(connection: psycopg.AsyncConnection, table: sql.Identifier) -> None:
    """Create the table or its missing columns. Raises UnusableTable if the operator must act."""
    async with connection.transaction():
        await set_statement_timeout(connection)
        info = await _table_info(connection, table)
        if info is not None and (problem := table_problem(info)):
            raise UnusableTable(f"the table {table.as_string()} {problem}")
        change = _create_statement(table) if info is None else _alter_statement(table, missing_columns(info))
        if change is None:
            return
        await connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        await connection.execute("SET LOCAL client_min_messages = warning")
        try:
            await connection.execute(change)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege) as error:
            raise UnusableTable(_change_problem(error, table, info, change)) from None


async def set_statement_timeout(connection: psycopg.AsyncConnection) -> None:
    """Limit the duration of each statement of this transaction. A setting of the session would stay on the pool's connection."""
    await connection.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}")


async def violated_table_constraint(
    connection: psycopg.AsyncConnection, table: sql.Identifier, error: psycopg.Error
) -> str | None:
    """Return which constraint of the table rejects every hit, and what to do; None if the hit can be at fault.

    A constraint on columns that hits do not fill rejects every hit, unless a trigger fills them.
    """
    diag = error.diag
    if (error.sqlstate or "")[:2] != "23":
        return None
    if diag.table_name is None:  # errors of a domain do not name the table
        info = await _table_info(connection, table)
        problem = None if info is None else table_problem(info)
        return problem and f"the table {table.as_string()} {problem}"
    name = sql.Identifier(*filter(None, (diag.schema_name, diag.table_name))).as_string()
    cursor = await connection.execute(
        _VIOLATED_COLUMNS_QUERY, {"table": name, "column": diag.column_name, "constraint": diag.constraint_name}
    )
    columns = await cursor.fetchall()
    if not columns or any(column in COLUMNS or generated or trigger for column, generated, trigger in columns):
        return None
    names = ", ".join(column for column, _, _ in columns)
    violated = f"constraint {diag.constraint_name}" if diag.constraint_name else "NOT NULL"
    return f"the table {name} refuses hits: {violated} on {names}, which no hit fills; set a valid default, or drop it"


async def _table_info(connection: psycopg.AsyncConnection, table: sql.Identifier) -> TableInfo | None:
    row = await (await connection.execute(_TABLE_QUERY, (table.as_string(),))).fetchone()
    return None if row is None else TableInfo(*row)


def _create_statement(table: sql.Identifier) -> sql.Composed:
    columns = [
        sql.SQL("{} " + kind + (" NOT NULL" if name in _REQUIRED else "")).format(sql.Identifier(name))
        for name, kind in COLUMNS.items()
    ]
    definitions = sql.SQL(", ").join([*columns, sql.SQL("PRIMARY KEY ({})").format(name_list(KEY))])
    return sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(table, definitions)


def _alter_statement(table: sql.Identifier, names: list[str]) -> sql.Composed | None:
    if not names:
        return None
    added = [sql.SQL("ADD COLUMN IF NOT EXISTS " + name + " " + COLUMNS[name]) for name in names]  # type: ignore[arg-type]
    return sql.SQL("ALTER TABLE {} {}").format(table, sql.SQL(", ").join(added))


def _change_problem(error: psycopg.Error, table: sql.Identifier, info: TableInfo | None, change: sql.Composed) -> str:
    name = table.as_string()
    if info is None:
        return (
            f"the table {name} is missing, and this user has no privilege to create it; GRANT CREATE ON SCHEMA to it, "
            "or create the table as docs/how-to/fill-postgresql.md shows"
        )
    lacks = f"the table {name} lacks {', '.join(missing_columns(info))}"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return (
            f"{lacks}; another transaction held a lock on it for {LOCK_TIMEOUT_MS / 1000:g} s, so ALTER TABLE did not get "
            f"its ACCESS EXCLUSIVE lock; end that transaction, or add the columns yourself: {change.as_string()}"
        )
    return f"{lacks}, and this user does not own it; let its owner run: {change.as_string()}"


def name_list(columns: tuple[str, ...]) -> sql.Composed:
    """Return the names as a comma-separated SQL list."""
    return sql.SQL(", ").join(map(sql.Identifier, columns))
