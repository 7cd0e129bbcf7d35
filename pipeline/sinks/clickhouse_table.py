"""The table of hits in ClickHouse: reads the system tables, and creates only what is missing.

The system tables show a table to every user with any privilege on it. A complete table needs INSERT, and SELECT to read the highest
stored offset.
"""

from __future__ import annotations

import re

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

COLUMNS = {
    "project_id": "String",
    "hit_id": "String",
    "received_at": "DateTime64(3, 'UTC')",
    "sent_at": "DateTime64(3, 'UTC')",
    "user_id": "Nullable(String)",
    "anonymous_id": "Nullable(String)",
    "event_name": "Nullable(String)",
    "event": "String",
    "context": "String",
    "integrations": "Nullable(String)",
    "options": "Nullable(String)",
    "_topic": "LowCardinality(String)",
    "_partition": "Int32",
    "_offset": "Int64",
}
"""Columns and their types. Missing columns are added, other columns stay unchanged."""
DEDUPLICATION_WINDOW = 10_000
"""Number of inserts whose deduplication tokens a table remembers, if this sink creates it."""
ACCESS_DENIED = 497


class UnusableTable(Exception):
    """The operator's table cannot hold each record once. The message states the reason and what to do."""


def prepare_table(client: Client, database: str, name: str) -> None:
    """Create the table or its missing columns. Raises UnusableTable if the operator must act."""
    parameters, table = {"database": database, "name": name}, f"`{database}`.`{name}`"
    tables = client.query(
        "SELECT engine_full, partition_key FROM system.tables WHERE database = %(database)s AND name = %(name)s",
        parameters=parameters,
    ).result_rows
    if not tables:
        _run_ddl(client, table, _create_statement(table))
        return
    if problem := table_problem(*tables[0]):
        raise UnusableTable(f"the table {table} {problem}")
    existing = client.query(
        "SELECT name FROM system.columns WHERE database = %(database)s AND table = %(name)s", parameters=parameters
    ).result_rows
    if missing := [column for column in COLUMNS if (column,) not in existing]:
        added = ", ".join(f"ADD COLUMN IF NOT EXISTS `{column}` {COLUMNS[column]}" for column in missing)
        _run_ddl(client, table, f"ALTER TABLE {table} {added}")


def _run_ddl(client: Client, table: str, statement: str) -> None:
    try:
        client.command(statement)
    except ClickHouseError as error:
        if getattr(error, "code", None) != ACCESS_DENIED:
            raise
        raise UnusableTable(
            f"the table {table} is missing or lacks columns, and this user has no privilege to create them; "
            f"grant CREATE TABLE and ALTER ADD COLUMN on it, or run: {statement}"
        ) from None


def _create_statement(table: str) -> str:
    columns = ", ".join(f"`{name}` {kind}" for name, kind in COLUMNS.items())
    return (
        f"CREATE TABLE IF NOT EXISTS {table} ({columns}, INDEX _offsets _offset TYPE minmax GRANULARITY 1) "
        "ENGINE = MergeTree ORDER BY (project_id, received_at) "
        f"SETTINGS non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}"
    )


def table_problem(engine: str, partition_key: str) -> str | None:
    """Return why a table cannot hold each record once, and what to do; None if it can.

    `engine` is `engine_full` of system.tables.
    """
    if "MergeTree" not in engine.split("(")[0].split()[0]:
        return (
            f"is not a MergeTree table ({engine.split()[0]}), so repeats would be stored twice; configure another table"
        )
    if partition_key:
        return "has a PARTITION BY, so inserts are not atomic; configure a table without it"
    window = re.search(r"\bnon_replicated_deduplication_window = (\d+)", engine)
    if engine.startswith(("Replicated", "Shared")):
        window = re.search(r"\breplicated_deduplication_window = (\d+)", engine)
        return "has replicated_deduplication_window = 0; increase it" if window and window[1] == "0" else None
    if window is None or window[1] == "0":
        setting = f"MODIFY SETTING non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}"
        return f"does not deduplicate repeats; run: ALTER TABLE ... {setting}"
    return None
