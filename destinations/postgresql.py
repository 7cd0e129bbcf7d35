"""PostgreSQL: hits as rows of a table."""

from __future__ import annotations

from pydantic import Field, field_validator

from pipeline.destination import Destination, Postgres, Settings

_UNREADABLE = "must be postgresql://user:password@host:port/database, in user and password each of :/?#[]@% written as %3A and so on"


class PostgresSettings(Settings):
    """Which table of which database."""

    dsn: str = Field(
        min_length=1,
        repr=False,
        description="The address, such as postgresql://user@host/database; the password from ${NAME}.",
    )
    table: str = Field(
        "hits", pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$", description="Made when it is missing."
    )

    @field_validator("dsn")
    @classmethod
    def _can_be_read(cls, dsn: str) -> str:
        # Here, since it takes a tenth of a second, which only this destination needs.
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            read = conninfo_to_dict(dsn)
        except ProgrammingError:
            raise ValueError(_UNREADABLE) from None  # libpq's own message holds a part of it
        ports = str(read.get("port") or "")
        # What a password with one of /@ makes of the parts behind it.
        if "@" in str(read.get("host") or "") or not all(port.isdigit() for port in ports.split(",") if port):
            raise ValueError(_UNREADABLE)
        return dsn


destination = Destination(
    name="PostgreSQL",
    summary="Rows of a table: ids, times, and event, context, integrations and options as jsonb.",
    settings=PostgresSettings,
    sink=Postgres(lambda settings: str(settings.dsn), lambda settings: str(settings.table)),
    documentation="https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT",
    delivery_guarantee="Each hit once: the key of the table is (project_id, hit_id).",
)
