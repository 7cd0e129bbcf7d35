"""The table of hits in ClickHouse: the system tables are read first, and only what is missing is made.

They show a table to everybody who has a right on it. A complete table needs INSERT, and SELECT, by which the sink asks how far it goes.
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
"""The table; a column that it lacks is added, others are left alone."""
WINDOW = 10_000
"""Inserts whose deduplication tokens a table of ours remembers."""
ACCESS_DENIED = 497


class UnfitTable(Exception):
    """The operator's table can't hold each record once; the message says why, and what to do."""


def prepare_table(client: Client, database: str, name: str) -> None:
    """Make the table, or the columns, where they are missing. Raises UnfitTable when the operator must act."""
    place, table = {"database": database, "name": name}, f"`{database}`.`{name}`"
    found = client.query(
        "SELECT engine_full, partition_key FROM system.tables WHERE database = %(database)s AND name = %(name)s",
        parameters=place,
    ).result_rows
    if not found:
        _change(client, table, _creation(table))
        return
    if unfit := unfit_table(*found[0]):
        raise UnfitTable(f"the table {table} {unfit}")
    there = client.query(
        "SELECT name FROM system.columns WHERE database = %(database)s AND table = %(name)s", parameters=place
    ).result_rows
    if missing := [column for column in COLUMNS if (column,) not in there]:
        added = ", ".join(f"ADD COLUMN IF NOT EXISTS `{column}` {COLUMNS[column]}" for column in missing)
        _change(client, table, f"ALTER TABLE {table} {added}")


def _change(client: Client, table: str, statement: str) -> None:
    try:
        client.command(statement)
    except ClickHouseError as error:
        if getattr(error, "code", None) != ACCESS_DENIED:
            raise
        raise UnfitTable(
            f"the table {table} is missing or lacks columns, and this user may not make them; "
            f"grant CREATE TABLE and ALTER ADD COLUMN on it, or run: {statement}"
        ) from None


def _creation(table: str) -> str:
    declared = ", ".join(f"`{name}` {kind}" for name, kind in COLUMNS.items())
    return (
        f"CREATE TABLE IF NOT EXISTS {table} ({declared}, INDEX _offsets _offset TYPE minmax GRANULARITY 1) "
        "ENGINE = MergeTree ORDER BY (project_id, received_at) "
        f"SETTINGS non_replicated_deduplication_window = {WINDOW}"
    )


def unfit_table(engine: str, partition_key: str) -> str | None:
    """Why a table can't hold each record once, and what to do; `engine` is `engine_full` of system.tables."""
    if "MergeTree" not in engine.split("(")[0].split()[0]:
        return f"is no MergeTree ({engine.split()[0]}), so repeats would be stored twice; name another table"
    if partition_key:
        return "has a PARTITION BY, so that an insert is not stored whole or not at all; name a table without it"
    window = re.search(r"\bnon_replicated_deduplication_window = (\d+)", engine)
    if engine.startswith(("Replicated", "Shared")):
        window = re.search(r"\breplicated_deduplication_window = (\d+)", engine)
        return "has replicated_deduplication_window = 0; raise it" if window and window[1] == "0" else None
    if window is None or window[1] == "0":
        setting = f"MODIFY SETTING non_replicated_deduplication_window = {WINDOW}"
        return f"does not notice repeats; ALTER TABLE ... {setting}"
    return None
