"""ClickHouse: stores hits as rows of a table."""

from __future__ import annotations

from pydantic import Field

from pipeline.destination import ClickHouse, Destination, HttpUrl, Settings


class ClickHouseSettings(Settings):
    """The server and the table."""

    url: HttpUrl = Field(description="The HTTP interface, such as https://host:8443.")
    user: str = Field(
        "default",
        min_length=1,
        description="The user, which needs INSERT and SELECT; also CREATE TABLE and ALTER if the table is missing or incomplete.",
    )
    password: str = Field("", description="The password of the user, as ${NAME}.")
    database: str = Field("default", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="The database, which must exist.")
    table: str = Field(
        "hits", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="The table, which is created if it is missing."
    )


destination = Destination(
    name="ClickHouse",
    summary="Stores hits in a MergeTree table: ids, times, and event, context, integrations and options as JSON text.",
    settings=ClickHouseSettings,
    sink=ClickHouse(
        lambda settings: str(settings.url),
        lambda settings: str(settings.user),
        lambda settings: str(settings.password),
        lambda settings: str(settings.database),
        lambda settings: str(settings.table),
    ),
    documentation="https://clickhouse.com/docs/guides/developer/deduplicating-inserts-on-retries",
    delivery_guarantee="Each record of the topic once, by deduplication tokens and consecutive offsets.",
)
