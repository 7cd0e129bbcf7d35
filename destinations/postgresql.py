"""PostgreSQL: stores hits as rows of a table."""

from __future__ import annotations

from pydantic import Field, field_validator

from pipeline.destination import Destination, Postgres, Settings

_INVALID_DSN = "must be postgresql://user:password@host:port/database, with :/?#[]@% in user and password percent-encoded, such as %3A"


class PostgresSettings(Settings):
    """The database and the table."""

    dsn: str = Field(
        min_length=1,
        repr=False,
        description="The address, such as postgresql://user@host/database; write the password as ${NAME}.",
    )
    table: str = Field(
        "hits",
        pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$",
        description="The table, which is created if it is missing.",
    )

    @field_validator("dsn")
    @classmethod
    def _is_valid_dsn(cls, dsn: str) -> str:
        # Imported here, because it takes a tenth of a second and only this destination needs it.
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            parts = conninfo_to_dict(dsn)
        except ProgrammingError:
            raise ValueError(_INVALID_DSN) from None  # libpq's message would show a part of the password
        ports = str(parts.get("port") or "")
        # A password with an unencoded / or @ moves its rest into host or port.
        if "@" in str(parts.get("host") or "") or not all(port.isdigit() for port in ports.split(",") if port):
            raise ValueError(_INVALID_DSN)
        return dsn


destination = Destination(
    name="PostgreSQL",
    summary="Stores hits in a table: ids, times, and event, context, integrations and options as jsonb.",
    settings=PostgresSettings,
    sink=Postgres(lambda settings: str(settings.dsn), lambda settings: str(settings.table)),
    documentation="https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT",
    delivery_guarantee="Each hit once: the key of the table is (project_id, hit_id).",
)
