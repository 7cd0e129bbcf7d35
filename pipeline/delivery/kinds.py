"""Builds the deliverer of each kind of sink, and imports its client only if a connection needs it.

All clients together (pyarrow, gRPC, psycopg, ClickHouse, httpx) take half of a deliverer's start time and 100 MB. Few configurations
need all of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config import Config, ConnectionConfig
from pipeline.destination import BigQuery, ClickHouse, Destination, Files, Http, Postgres, Settings, Sink
from pipeline.registry import declared_destinations

if TYPE_CHECKING:
    from pipeline.delivery.deliverers import Deliverer

_ROWS_BATCH, _ROWS_LINGER_SECONDS = 5_000, 0.5
_FILES_BATCH, _FILES_LINGER_SECONDS = 10_000, 2.0
_HTTP_LINGER_SECONDS = 0.05
_CLIENTS: dict[type[Sink], str] = {
    Http: "pipeline.sinks.http",
    Postgres: "pipeline.sinks.postgres",
    BigQuery: "pipeline.sinks.bigquery",
    ClickHouse: "pipeline.delivery.clickhouse_deliverer",
    Files: "pipeline.delivery.files_deliverer",
}


class BuiltDeliverer(NamedTuple):
    """A deliverer with its batch size and linger time."""

    deliverer: Deliverer
    batch_records: int
    linger_seconds: float


def import_clients(config: Config) -> None:
    """Import the clients that the connections of `config` need. Blocks for up to several seconds; call it off the loop."""
    known = declared_destinations()
    sinks = {type(known[connection.destination].sink) for connection in config.connections.values()}
    for kind, module in _CLIENTS.items():
        if kind in sinks:
            importlib.import_module(module)


def build_deliverer(
    name: str, topic: str, connection: ConnectionConfig, destination: Destination, sink: Sink, settings: Settings
) -> BuiltDeliverer:
    """Return the deliverer of one connection; `sink` is that of its destination."""
    from pipeline.delivery.http_deliverer import HttpDeliverer
    from pipeline.delivery.rows_deliverer import RowsDeliverer

    if isinstance(sink, Http):
        # A crash repeats up to one batch, so its size is limited.
        records = connection.delivery.max_in_flight * sink.limits.events
        http = HttpDeliverer(name, connection, destination, sink, settings)
        return BuiltDeliverer(http, records, _HTTP_LINGER_SECONDS)
    if isinstance(sink, Postgres):
        from pipeline.sinks.postgres import PostgresSink

        rows = RowsDeliverer(name, connection, settings, PostgresSink(sink.dsn(settings), sink.table(settings)))
        return BuiltDeliverer(rows, _ROWS_BATCH, _ROWS_LINGER_SECONDS)
    if isinstance(sink, BigQuery):
        from pipeline.sinks.bigquery import BigQuerySink

        rows = RowsDeliverer(name, connection, settings, BigQuerySink(sink, settings))
        return BuiltDeliverer(rows, sink.limits.events, _ROWS_LINGER_SECONDS)
    if isinstance(sink, ClickHouse):
        from pipeline.delivery.clickhouse_deliverer import ClickHouseDeliverer

        clickhouse = ClickHouseDeliverer(name, topic, connection, sink, settings)
        return BuiltDeliverer(clickhouse, _ROWS_BATCH, _ROWS_LINGER_SECONDS)
    from pipeline.delivery.files_deliverer import FilesDeliverer

    files = FilesDeliverer(name, topic, connection, sink, settings)
    return BuiltDeliverer(files, _FILES_BATCH, _FILES_LINGER_SECONDS)
