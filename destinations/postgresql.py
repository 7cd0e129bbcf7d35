"""PostgreSQL: hits as rows of a table."""

from __future__ import annotations

from pydantic import Field

from pipeline.destination import Destination, Postgres, Settings


class PostgresSettings(Settings):
    """Which table of which database."""

    dsn: str = Field(
        min_length=1, description="The address, such as postgresql://user@host/database; the password from ${NAME}."
    )
    table: str = Field(
        "hits", pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$", description="Made when it is missing."
    )


destination = Destination(
    name="PostgreSQL",
    summary="Rows of a table: ids, times, and event, context, integrations and options as jsonb.",
    settings=PostgresSettings,
    sink=Postgres(lambda settings: str(settings.dsn), lambda settings: str(settings.table)),
    documentation="https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT",
    delivery_guarantee="Each hit once: the key of the table is (project_id, hit_id).",
)
