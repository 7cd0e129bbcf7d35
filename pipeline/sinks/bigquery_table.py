"""The table of hits in BigQuery: its schema, its checks, and its rows as protobuf messages. Sends no requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pipeline.codec.routed_hit import read_time
from pipeline.destination import Rejected
from pipeline.sinks.table_row import Row

COLUMNS = {
    "project_id": "STRING",
    "hit_id": "STRING",
    "received_at": "TIMESTAMP",
    "sent_at": "TIMESTAMP",
    "user_id": "STRING",
    "anonymous_id": "STRING",
    "event_name": "STRING",
    "event": "JSON",
    "context": "JSON",
    "integrations": "JSON",
    "options": "JSON",
}
"""Columns and their types. Missing columns are added, other columns stay unchanged. JSON can also be stored in a STRING column."""
KEY = ("project_id", "hit_id")
_CHANGE_TYPE = "_CHANGE_TYPE"
_ROW_OVERHEAD_BYTES = 8
"""Bytes of a row's tag and length in a request."""


def _row_message() -> tuple[Any, Any]:
    """Return the protobuf message of a row: its descriptor, which is the writer schema of requests, and its class.

    TIMESTAMP is an int64 in microseconds, JSON a string (cloud.google.com/bigquery/docs/supported-data-types).
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="hitrouter/bigquery_row.proto", syntax="proto2")
    row = file.message_type.add(name="Row")
    for number, (name, kind) in enumerate({**COLUMNS, _CHANGE_TYPE: "STRING"}.items(), 1):
        type_ = field.TYPE_INT64 if kind == "TIMESTAMP" else field.TYPE_STRING
        row.field.add(name=name, number=number, label=field.LABEL_OPTIONAL, type=type_)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return row, message_factory.GetMessageClass(pool.FindMessageTypeByName("Row"))


ROW_DESCRIPTOR, _Message = _row_message()


def encode_row(row: Row, request_bytes: int) -> bytes | Rejected:
    """Return the upsert of a row; Rejected if it is larger than `request_bytes`, or if a time is invalid."""
    values: dict[str, Any] = row._asdict()
    for name in ("received_at", "sent_at"):
        time_ms = read_time(values[name])
        if time_ms is None:
            return Rejected("not_storable", f"{name} is not a time that BigQuery can store")
        values[name] = time_ms * 1000
    encoded: bytes = _Message(**values, **{_CHANGE_TYPE: "UPSERT"}).SerializeToString()
    if len(encoded) + _ROW_OVERHEAD_BYTES > request_bytes:
        return Rejected("too_large", f"{len(encoded)} bytes; BigQuery accepts at most {request_bytes} per request")
    return encoded


def split_into_requests(upserts: Iterable[tuple[int, bytes]], request_bytes: int) -> Iterator[dict[int, bytes]]:
    """Yield `upserts` (position and row) in their order, as requests of at most `request_bytes`: rows by position."""
    request: dict[int, bytes] = {}
    total_bytes = 0
    for position, upsert in upserts:
        row_bytes = len(upsert) + _ROW_OVERHEAD_BYTES
        if request and total_bytes + row_bytes > request_bytes:
            yield request
            request, total_bytes = {}, 0
        request[position] = upsert
        total_bytes += row_bytes
    if request:
        yield request


def create_body(project: str, dataset: str, table: str) -> dict[str, Any]:
    """Return the body of tables.insert. Clustered by the key, by which upserts find their rows; partitioned for queries by time."""
    return {
        "tableReference": {"projectId": project, "datasetId": dataset, "tableId": table},
        "schema": {"fields": [_field(name, "REQUIRED" if name in KEY else "NULLABLE") for name in COLUMNS]},
        "tableConstraints": {"primaryKey": {"columns": list(KEY)}},
        "timePartitioning": {"type": "DAY", "field": "received_at"},
        "clustering": {"fields": list(KEY)},
    }


def patch_body(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the body of tables.patch that adds the missing columns to `table` of tables.get; None if none is missing."""
    fields = _fields(table)
    existing = {str(field["name"]).lower() for field in fields}
    added = [_field(name, "NULLABLE") for name in COLUMNS if name not in existing]
    return {"schema": {"fields": [*fields, *added]}} if added else None


def table_problem(table: Mapping[str, Any]) -> str | None:
    """Return why `table` of tables.get cannot hold each hit once, and what to do; None if it can."""
    if table.get("type", "TABLE") != "TABLE":
        return f"is a {table['type']}; configure a table"
    key = table.get("tableConstraints", {}).get("primaryKey", {}).get("columns", [])
    if {name.lower() for name in key} != set(KEY):
        return (
            f"has the primary key ({', '.join(key)}), so repeats would be stored twice; "
            f"run: ALTER TABLE ... ADD PRIMARY KEY ({', '.join(KEY)}) NOT ENFORCED"
        )
    for field in _fields(table):
        name, kind, mode = str(field["name"]).lower(), field["type"], field.get("mode", "NULLABLE")
        wanted = COLUMNS.get(name)
        if wanted is None and mode == "REQUIRED":
            return f"requires a value for {name}, which no hit has; make the column NULLABLE"
        if wanted is not None and (mode == "REPEATED" or kind not in _accepted_types(wanted)):
            return f"has {name} as {mode} {kind} instead of {wanted}; configure another table"
    return None


def _accepted_types(wanted: str) -> Sequence[str]:
    return ("JSON", "STRING") if wanted == "JSON" else (wanted,)


def _fields(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = table.get("schema", {}).get("fields", [])
    return fields


def _field(name: str, mode: str) -> dict[str, Any]:
    return {"name": name, "type": COLUMNS[name], "mode": mode}
