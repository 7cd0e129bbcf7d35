"""ClickHouse: hits as rows of a table."""

from __future__ import annotations

from pydantic import Field

from pipeline.destination import ClickHouse, Destination, HttpUrl, Settings


class ClickHouseSettings(Settings):
    """Which table of which server."""

    url: HttpUrl = Field(description="The HTTP interface, such as https://host:8443.")
    user: str = Field(
        "default",
        min_length=1,
        description="Needs INSERT and SELECT; CREATE TABLE and ALTER where the table is not complete.",
    )
    password: str = Field("", description="From ${NAME}.")
    database: str = Field("default", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Must be there.")
    table: str = Field("hits", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Made when it is missing.")


destination = Destination(
    name="ClickHouse",
    summary="Rows of a MergeTree table: ids, times, and event, context, integrations and options as JSON text.",
    settings=ClickHouseSettings,
    sink=ClickHouse(
        lambda settings: str(settings.url),
        lambda settings: str(settings.user),
        lambda settings: str(settings.password),
        lambda settings: str(settings.database),
        lambda settings: str(settings.table),
    ),
    documentation="https://clickhouse.com/docs/guides/developer/deduplicating-inserts-on-retries",
    delivery_guarantee="Each record of the topic once: a deduplication token by first offset, and a chain of offsets.",
)
