"""The table of hits in PostgreSQL: the catalogue is read first, and only what is missing is made.

Reading the catalogue needs no right on the table and no lock that holds up others. A complete table needs INSERT, and SELECT on the
key, which ON CONFLICT reads. ALTER TABLE asks for an ACCESS EXCLUSIVE lock; every reader queues behind that request, hence LOCK_MS.
"""

from __future__ import annotations

from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from pipeline.sinks.postgres_verdict import UnfitTable

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
"""The table; a column that it lacks is added, others are left alone."""
_FILLED = frozenset({"project_id", "hit_id", "received_at", "sent_at", "event", "context"})
"""Columns that each hit fills: NOT NULL where this sink makes the table."""
KEY = ("project_id", "hit_id")
STATEMENT_MS = 60_000
LOCK_MS = 1_000
"""For so long readers may queue behind a change of the table."""

_LOOK = """
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
"""7 in tgtype: before, insert, each row (pg_trigger.h). Such a trigger may fill columns of its own."""
_VIOLATED = """
SELECT a.attname::text, a.attgenerated != '', EXISTS (
  SELECT FROM pg_trigger WHERE tgrelid = a.attrelid AND NOT tgisinternal AND tgenabled != 'D' AND tgtype & 7 = 7)
FROM pg_attribute a WHERE a.attrelid = to_regclass(%(table)s) AND (a.attname = %(column)s OR a.attnum = ANY (
  SELECT unnest(conkey) FROM pg_constraint WHERE conrelid = a.attrelid AND conname = %(constraint)s
  UNION ALL
  SELECT unnest(i.indkey::int2[]) FROM pg_index i JOIN pg_class n ON n.oid = i.indexrelid
  WHERE i.indrelid = a.attrelid AND n.relname = %(constraint)s AND i.indexprs IS NULL))
"""


class Found(NamedTuple):
    """What the catalogue says of a table."""

    kind: str
    """`relkind` of pg_class: r and p are tables, all else is a view or the like."""
    columns: list[str]
    demanded: list[str]
    """Columns for which an INSERT must have a value: NOT NULL, no default."""
    has_key: bool
    has_trigger: bool


def unfit_table(found: Found) -> str | None:
    """Return why the table cannot take hits, and what to do; what `missing_columns` names can be mended."""
    if found.kind not in "rp":  # whether a view takes rows the server knows
        missing = missing_columns(found)
        return f"is no table and lacks {', '.join(missing)}; name another one" if missing else None
    if not found.has_key and set(KEY) <= set(found.columns):
        return (
            "has no unique index on (project_id, hit_id), so repeats would be stored twice; "
            "CREATE UNIQUE INDEX CONCURRENTLY ON it (project_id, hit_id)"
        )
    own = [name for name in found.demanded if name not in COLUMNS]
    if own and not found.has_trigger:
        return f"demands a value for {', '.join(own)}, which no hit has; give it a default, or drop NOT NULL"
    return None


def missing_columns(found: Found) -> list[str]:
    """Return the names of COLUMNS that the table lacks."""
    return [name for name in COLUMNS if name not in found.columns]


async def prepare_table(connection: psycopg.AsyncConnection, table: sql.Identifier) -> None:
    """Make the table, or the columns, where they are missing. Raises UnfitTable when the operator must act."""
    async with connection.transaction():
        await limit_seconds(connection)
        found = await _found(connection, table)
        if found is not None and (unfit := unfit_table(found)):
            raise UnfitTable(f"the table {table.as_string()} {unfit}")
        change = _creation(table) if found is None else _addition(table, missing_columns(found))
        if change is None:
            return
        await connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS}")
        await connection.execute("SET LOCAL client_min_messages = warning")
        try:
            await connection.execute(change)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege) as error:
            raise UnfitTable(_refused_change(error, table, found, change)) from None


async def limit_seconds(connection: psycopg.AsyncConnection) -> None:
    """Limit each statement of this transaction; a setting of the session would stay with a connection of the pool."""
    await connection.execute(f"SET LOCAL statement_timeout = {STATEMENT_MS}")


async def fault_of_table(
    connection: psycopg.AsyncConnection, table: sql.Identifier, error: psycopg.Error
) -> str | None:
    """Return why the table refuses every hit, and what to do; None where the hit may be at fault.

    A constraint on columns that no hit fills says nothing about a hit, unless a trigger fills them.
    """
    diag = error.diag
    if (error.sqlstate or "")[:2] != "23":
        return None
    if diag.table_name is None:  # a domain does not name its table
        found = await _found(connection, table)
        unfit = None if found is None else unfit_table(found)
        return unfit and f"the table {table.as_string()} {unfit}"
    place = sql.Identifier(*filter(None, (diag.schema_name, diag.table_name))).as_string()
    cursor = await connection.execute(
        _VIOLATED, {"table": place, "column": diag.column_name, "constraint": diag.constraint_name}
    )
    columns = await cursor.fetchall()
    if not columns or any(name in COLUMNS or generated or trigger for name, generated, trigger in columns):
        return None
    names = ", ".join(name for name, _, _ in columns)
    broken = f"constraint {diag.constraint_name}" if diag.constraint_name else "NOT NULL"
    return (
        f"the table {place} refuses hits: {broken} on {names}, which no hit fills; give a default that fits, or drop it"
    )


async def _found(connection: psycopg.AsyncConnection, table: sql.Identifier) -> Found | None:
    row = await (await connection.execute(_LOOK, (table.as_string(),))).fetchone()
    return None if row is None else Found(*row)


def _creation(table: sql.Identifier) -> sql.Composed:
    columns = [
        sql.SQL("{} " + kind + (" NOT NULL" if name in _FILLED else "")).format(sql.Identifier(name))
        for name, kind in COLUMNS.items()
    ]
    declared = sql.SQL(", ").join([*columns, sql.SQL("PRIMARY KEY ({})").format(names_of(KEY))])
    return sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(table, declared)


def _addition(table: sql.Identifier, names: list[str]) -> sql.Composed | None:
    if not names:
        return None
    added = [sql.SQL("ADD COLUMN IF NOT EXISTS " + name + " " + COLUMNS[name]) for name in names]  # type: ignore[arg-type]
    return sql.SQL("ALTER TABLE {} {}").format(table, sql.SQL(", ").join(added))


def _refused_change(error: psycopg.Error, table: sql.Identifier, found: Found | None, change: sql.Composed) -> str:
    name = table.as_string()
    if found is None:
        return (
            f"the table {name} is missing, and this user may not make it: GRANT CREATE ON SCHEMA to it, "
            "or make the table as docs/destinations.md shows"
        )
    lacks = f"the table {name} lacks {', '.join(missing_columns(found))}"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return (
            f"{lacks}; another transaction held the table for {LOCK_MS / 1000:g} s, so the ACCESS EXCLUSIVE lock of "
            f"ALTER TABLE was given up for now; end that transaction, or add the columns yourself: {change.as_string()}"
        )
    return f"{lacks}, and this user does not own it; let its owner run: {change.as_string()}"


def names_of(columns: tuple[str, ...]) -> sql.Composed:
    """Return the names as a list of SQL."""
    return sql.SQL(", ").join(map(sql.Identifier, columns))
