"""The table of hits in BigQuery and its rows as protobuf messages: all that is decided without asking Google."""

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
"""The table; a column that it lacks is added, others are left alone. JSON goes into a STRING column as well."""
KEY = ("project_id", "hit_id")
_CHANGE_TYPE = "_CHANGE_TYPE"
_ROW_OVERHEAD_BYTES = 8
"""Tag and length of a row in a request."""


def _declare() -> tuple[Any, Any]:
    """The row as a message: its descriptor, which is the schema of a request, and its class.

    TIMESTAMP is int64 in microseconds, JSON is a string (cloud.google.com/bigquery/docs/supported-data-types).
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


ROW_DESCRIPTOR, _Message = _declare()


def encode_row(row: Row, request_bytes: int) -> bytes | Rejected:
    """The upsert of a row; Rejected when it is larger than a request, or has a time that nobody can read."""
    values: dict[str, Any] = row._asdict()
    for name in ("received_at", "sent_at"):
        time_ms = read_time(values[name])
        if time_ms is None:
            return Rejected("not_storable", f"{name} is no time that BigQuery can store")
        values[name] = time_ms * 1000
    encoded: bytes = _Message(**values, **{_CHANGE_TYPE: "UPSERT"}).SerializeToString()
    if len(encoded) + _ROW_OVERHEAD_BYTES > request_bytes:
        return Rejected("too_large", f"{len(encoded)} bytes; BigQuery takes {request_bytes} a request")
    return encoded


def requests_of(upserts: Iterable[tuple[int, bytes]], request_bytes: int) -> Iterator[dict[int, bytes]]:
    """Positions and rows, in their order, by request of at most `request_bytes`."""
    request: dict[int, bytes] = {}
    held = 0
    for position, upsert in upserts:
        size = len(upsert) + _ROW_OVERHEAD_BYTES
        if request and held + size > request_bytes:
            yield request
            request, held = {}, 0
        request[position] = upsert
        held += size
    if request:
        yield request


def new_table(project: str, dataset: str, table: str) -> dict[str, Any]:
    """The body of tables.insert. Clustered by the key, by which upserts find their rows; in partitions, for queries by time."""
    return {
        "tableReference": {"projectId": project, "datasetId": dataset, "tableId": table},
        "schema": {"fields": [_field(name, "REQUIRED" if name in KEY else "NULLABLE") for name in COLUMNS]},
        "tableConstraints": {"primaryKey": {"columns": list(KEY)}},
        "timePartitioning": {"type": "DAY", "field": "received_at"},
        "clustering": {"fields": list(KEY)},
    }


def more_columns(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body of tables.patch for what the table of tables.get lacks; None when it lacks nothing."""
    fields = _fields(table)
    known = {str(field["name"]).lower() for field in fields}
    added = [_field(name, "NULLABLE") for name in COLUMNS if name not in known]
    return {"schema": {"fields": [*fields, *added]}} if added else None


def unfit_table(table: Mapping[str, Any]) -> str | None:
    """Why the table of tables.get can't hold each hit once, and what to do."""
    if table.get("type", "TABLE") != "TABLE":
        return f"is a {table['type']}; name a table"
    key = table.get("tableConstraints", {}).get("primaryKey", {}).get("columns", [])
    if {name.lower() for name in key} != set(KEY):
        return (
            f"has the primary key ({', '.join(key)}), so repeats would be stored twice; "
            f"ALTER TABLE ... ADD PRIMARY KEY ({', '.join(KEY)}) NOT ENFORCED"
        )
    for field in _fields(table):
        name, kind, mode = str(field["name"]).lower(), field["type"], field.get("mode", "NULLABLE")
        wanted = COLUMNS.get(name)
        if wanted is None and mode == "REQUIRED":
            return f"demands a value for {name}, which no hit has; make it NULLABLE"
        if wanted is not None and (mode == "REPEATED" or kind not in _kinds(wanted)):
            return f"has {name} as {mode} {kind} instead of {wanted}; name another table"
    return None


def _kinds(wanted: str) -> Sequence[str]:
    return ("JSON", "STRING") if wanted == "JSON" else (wanted,)


def _fields(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = table.get("schema", {}).get("fields", [])
    return fields


def _field(name: str, mode: str) -> dict[str, Any]:
    return {"name": name, "type": COLUMNS[name], "mode": mode}
