"""An imitation of BigQuery for tests, because no package contains BigQuery and tests do not call Google.

It implements what the sink uses, by Google's documentation:

- gRPC: AppendRows on default streams, by the real service definition. Rows are decoded with the client's descriptor. The declared key
  merges upserts and deletes; rows without `_CHANGE_TYPE` are appended. A request with an invalid row stores no row, and names the
  invalid ones. Offsets, missing tables, unknown fields, wrong types and requests of 10 MB are refused.
- REST: tables get, insert and patch.

It has no queries, permissions, quotas, other streams, and no delay until a new table is visible.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.cloud.bigquery_storage_v1.types import AppendRowsRequest, AppendRowsResponse, RowError, StorageError
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import code_pb2, status_pb2

_METHOD = "/google.cloud.bigquery.storage.v1.BigQueryWrite/AppendRows"
_STREAM = re.compile(r"projects/([^/]+)/datasets/([^/]+)/tables/([^/]+)/(?:streams/)?_default")
_TABLES = re.compile(r"/bigquery/v2/projects/([^/]+)/datasets/([^/]+)/tables(?:/([^/]+))?")
_MOST_BYTES = 10 * 1024 * 1024
_MOST_MICROSECONDS = 253_402_300_799_999_999  # 9999-12-31
_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {"STRING": {_FIELD.TYPE_STRING}, "JSON": {_FIELD.TYPE_STRING}, "TIMESTAMP": {_FIELD.TYPE_INT64}}


@dataclass
class Table:
    """One table: its body of tables.get, and its rows."""

    body: dict[str, Any]
    keyed: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)
    plain: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, in no order."""
        return [*self.keyed.values(), *self.plain]


class FakeBigQuery:
    """The server's state. `faults` are consumed one per request, first in, first out.

    A gRPC code ends the call, `row N` refuses that row, and a Status is the response. `lost` stores the rows and ends the call without a
    response. While `gate` is clear, rows are stored and responses wait.
    """

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.settings: dict[str, str] = {"project": "shop-1", "dataset": "analytics"}
        """Settings of a connection to this server."""
        self.faults: deque[Any] = deque()
        self.requests: list[int] = []
        """Rows of each received request."""
        self.calls = 0
        self.stored = 0
        """Stored upserts, including repeats."""
        self.gate = threading.Event()
        self.gate.set()
        self.rest_status: int | None = None

    def table(self, name: str = "hits") -> Table:
        """Return the table of the existing dataset."""
        return self.tables[f"shop-1.analytics.{name}"]

    def append_rows(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """Handle one AppendRows call."""
        self.calls += 1
        stream, message = "", None
        for request in requests:
            request = AppendRowsRequest.pb(request)
            stream = request.write_stream or stream
            if request.proto_rows.writer_schema.HasField("proto_descriptor"):
                descriptor = request.proto_rows.writer_schema.proto_descriptor
                message = _message_of(descriptor)
            named = _STREAM.fullmatch(stream)
            if named is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no stream {stream!r}")
            table = self.tables.get(".".join(named.groups()))
            if table is None:
                context.abort(grpc.StatusCode.NOT_FOUND, f"no table for {stream}")
            if message is None or request.HasField("offset") or request.ByteSize() >= _MOST_BYTES:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no schema, an offset, or 10 MB and more")
            self.requests.append(len(request.proto_rows.rows.serialized_rows))
            fault = self.faults.popleft() if self.faults else None
            if isinstance(fault, grpc.StatusCode):
                context.abort(fault, "as the test wants")
            if isinstance(fault, status_pb2.Status):
                yield AppendRowsResponse(error=fault)
                continue
            if mismatch := _mismatch(table, descriptor):
                yield AppendRowsResponse(error=mismatch)
                continue
            rows = [message.FromString(row) for row in request.proto_rows.rows.serialized_rows]
            bad = [number for number, row in enumerate(rows) if _bad(table, row) or fault == f"row {number}"]
            if bad:
                code = RowError.RowErrorCode.FIELDS_ERROR
                yield AppendRowsResponse(
                    error=status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="see row_errors"),
                    row_errors=[RowError(index=number, code=code, message="a value of the row") for number in bad],
                )
                continue
            for row in rows:
                self._store(table, row)
            self.gate.wait(60)
            if fault == "lost":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
            yield AppendRowsResponse(append_result=AppendRowsResponse.AppendResult(), write_stream=stream)

    def _store(self, table: Table, row: Any) -> None:
        values = {field.name: value for field, value in row.ListFields()}
        change = values.pop("_CHANGE_TYPE", None)
        self.stored += 1
        if change is None:
            table.plain.append(values)
            return
        key = tuple(values.get(name) for name in _key(table))
        table.keyed.pop(key, None)
        if change == "UPSERT":
            table.keyed[key] = values

    def rest(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Return status and body of the REST API's response."""
        named = _TABLES.fullmatch(path)
        if self.rest_status is not None:
            return self.rest_status, _error(self.rest_status, "asTheTestWants")
        if named is None or named.group(1, 2) != ("shop-1", "analytics"):
            return 404, _error(404, "notFound")
        if method == "POST":
            name = f"{named[1]}.{named[2]}.{body['tableReference']['tableId']}"
            if name in self.tables:
                return 409, _error(409, "duplicate")
            self.tables[name] = Table({"type": "TABLE", **body})
            return 200, self.tables[name].body
        table = self.tables.get(".".join(named.groups()))
        if table is None:
            return 404, _error(404, "notFound")
        if method == "PATCH":
            table.body |= body
        return 200, table.body


def _message_of(descriptor: Any) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="client.proto", syntax="proto2", message_type=[descriptor])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.name))


def _key(table: Table) -> list[str]:
    key: list[str] = table.body.get("tableConstraints", {}).get("primaryKey", {}).get("columns", [])
    return key


def _columns(table: Table) -> dict[str, dict[str, Any]]:
    return {field["name"]: field for field in table.body["schema"]["fields"]}


def _mismatch(table: Table, descriptor: Any) -> status_pb2.Status | None:
    """Return the error if rows of this descriptor do not match the table's schema."""
    columns = _columns(table)
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="the schemas differ")
    for field_ in descriptor.field:
        if field_.name == "_CHANGE_TYPE" and _key(table) and field_.type == _FIELD.TYPE_STRING:
            continue
        if field_.name not in columns:
            status.details.add().Pack(
                StorageError.pb(StorageError(code=StorageError.StorageErrorCode.SCHEMA_MISMATCH_EXTRA_FIELDS))
            )
            return status
        if field_.type not in _TYPES[columns[field_.name]["type"]]:
            return status
    return None


def _bad(table: Table, row: Any) -> bool:
    """Return whether the row cannot be stored."""
    values = {field.name: value for field, value in row.ListFields()}
    if values.get("_CHANGE_TYPE", "UPSERT") not in ("UPSERT", "DELETE"):
        return True
    for name, column in _columns(table).items():
        value = values.get(name)
        if value is None:
            if column["mode"] == "REQUIRED":
                return True
        elif column["type"] == "JSON":
            try:
                _store_json(value)
            except ValueError:
                return True
        elif column["type"] == "TIMESTAMP" and not -62_135_596_800_000_000 <= value <= _MOST_MICROSECONDS:
            return True
    return False


def _store_json(text: str) -> Any:
    """Check JSON like PARSE_JSON by default, which refuses numbers that would lose digits."""

    def whole(digits: str) -> int:
        number = int(digits)
        if not -(2**63) <= number < 2**64 and int(float(number)) != number:
            raise ValueError(digits)
        return number

    return json.loads(text, parse_int=whole)


def _error(status: int, reason: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": reason, "errors": [{"reason": reason, "message": reason}]}}


@contextmanager
def running_bigquery() -> Iterator[FakeBigQuery]:
    """Run the server in threads of this process."""
    fake = FakeBigQuery()
    pool = ThreadPoolExecutor(8)
    server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if details.method != _METHOD:
                return None
            return grpc.stream_stream_rpc_method_handler(
                fake.append_rows, AppendRowsRequest.deserialize, AppendRowsResponse.serialize
            )

    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    class Rest(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = fake.rest(self.command, self.path, json.loads(body) if body else None)
            encoded = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_POST = do_PATCH = do_GET

    http = ThreadingHTTPServer(("127.0.0.1", 0), Rest)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    fake.settings |= {"url": f"http://127.0.0.1:{http.server_port}", "storage_url": f"http://127.0.0.1:{port}"}
    try:
        yield fake
    finally:
        fake.gate.set()
        http.shutdown()
        http.server_close()
        server.stop(None).wait()
        pool.shutdown(wait=False)
