"""The deliverer of each kind of sink. Its client is imported when the first connection needs it.

All clients together take half of a deliverer's start (pyarrow, gRPC, psycopg, ClickHouse, httpx), and 100 MB; few files need them all.
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


class Kind(NamedTuple):
    """A deliverer, and the batches that suit it."""

    deliverer: Deliverer
    batch_records: int
    linger_seconds: float


def import_clients(config: Config) -> None:
    """Import what the connections of `config` need. Takes up to seconds: call where no loop waits."""
    known = declared_destinations()
    sinks = {type(known[connection.destination].sink) for connection in config.connections.values()}
    for kind, module in _CLIENTS.items():
        if kind in sinks:
            importlib.import_module(module)


def kind_of(
    name: str, topic: str, connection: ConnectionConfig, destination: Destination, sink: Sink, settings: Settings
) -> Kind:
    """The deliverer of one connection; `sink` is its destination's."""
    from pipeline.delivery.http_deliverer import HttpDeliverer
    from pipeline.delivery.rows_deliverer import RowsDeliverer

    if isinstance(sink, Http):
        # What a crash may send again.
        records = connection.delivery.max_in_flight * sink.limits.events
        return Kind(HttpDeliverer(name, connection, destination, sink, settings), records, _HTTP_LINGER_SECONDS)
    if isinstance(sink, Postgres):
        from pipeline.sinks.postgres import PostgresSink

        rows = RowsDeliverer(name, connection, settings, PostgresSink(sink.dsn(settings), sink.table(settings)))
        return Kind(rows, _ROWS_BATCH, _ROWS_LINGER_SECONDS)
    if isinstance(sink, BigQuery):
        from pipeline.sinks.bigquery import BigQuerySink

        return Kind(
            RowsDeliverer(name, connection, settings, BigQuerySink(sink, settings)),
            sink.limits.events,
            _ROWS_LINGER_SECONDS,
        )
    if isinstance(sink, ClickHouse):
        from pipeline.delivery.clickhouse_deliverer import ClickHouseDeliverer

        return Kind(ClickHouseDeliverer(name, topic, connection, sink, settings), _ROWS_BATCH, _ROWS_LINGER_SECONDS)
    from pipeline.delivery.files_deliverer import FilesDeliverer

    return Kind(FilesDeliverer(name, topic, connection, sink, settings), _FILES_BATCH, _FILES_LINGER_SECONDS)
