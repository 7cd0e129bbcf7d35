"""Writes hits to a table of Google BigQuery that holds each hit once, because its rows are upserts by the key (project_id, hit_id).

BigQuery's change data capture makes this possible (cloud.google.com/bigquery/docs/change-data-capture). A row with `_CHANGE_TYPE`
UPSERT on the default stream replaces the row with the same key, from any writer and any batch. Queries read the merged table. So
batches can be repeated after a crash, by a zombie, or after a lost response. The primary key must be declared, NOT ENFORCED;
BigQuery only merges by it.

The alternative, offsets of an own write stream, also rejects repeats. But after kill -9 the stream's name, its first offset and the
rejected rows must come from a second store. A zombie with its own stream would still write duplicates.

An append is stored completely or not at all. Rows in its `row_errors` are rejected, and the others are sent again at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import google.auth
import grpc
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport
from google.cloud.bigquery_storage_v1.types import (
    AppendRowsRequest,
    AppendRowsResponse,
    ProtoRows,
    ProtoSchema,
    RowError,
)
from google.oauth2 import service_account

from pipeline.destination import BigQuery, Delivered, Misconfigured, Outcome, Rejected, Retry, Settings, Verdict
from pipeline.sinks.bigquery_errors import (
    BigQueryError,
    RestError,
    UnusableConfiguration,
    append_error_of_call,
    append_error_of_status,
    enum_name,
    outcome_of_error,
)
from pipeline.sinks.bigquery_table import (
    ROW_DESCRIPTOR,
    create_body,
    encode_row,
    patch_body,
    split_into_requests,
    table_problem,
)
from pipeline.sinks.proxies import InvalidProxy, Proxies
from pipeline.sinks.table_row import Row

logger = logging.getLogger(__name__)

_SCOPES = ("https://www.googleapis.com/auth/bigquery",)
_REST_TIMEOUT_SECONDS = 30.0
_APPEND_TIMEOUT_SECONDS = 60.0
_ERRORS = (BigQueryError, UnusableConfiguration, GoogleAuthError, OSError)


class BigQuerySink:
    """Appends rows to the table's default stream. Opens the stream when it is needed, and again after an error."""

    def __init__(
        self, declared: BigQuery, settings: Settings, timeout_seconds: float = _APPEND_TIMEOUT_SECONDS
    ) -> None:
        self._table = declared.table(settings)
        self._project, self._dataset, self._name = self._table.rsplit(".", 2)
        self._key, self._key_file = declared.key(settings), declared.key_file(settings)
        self._url, self._storage_url = declared.url(settings).rstrip("/"), declared.storage_url(settings).rstrip("/")
        self._request_bytes = declared.limits.request_bytes
        self._timeout_seconds = timeout_seconds
        self._stream: _AppendStream | None = None
        self._closed = False

    async def write(self, rows: Sequence[Row]) -> Verdict:
        """Store the rows. Return one outcome per row, or Rejected for all if BigQuery refuses a row without naming it."""
        return await asyncio.to_thread(self._write, rows)

    async def close(self) -> None:
        """Close the stream for good; later writes fail."""
        self._closed = True
        await asyncio.to_thread(self._close_stream)

    def _write(self, rows: Sequence[Row]) -> Verdict:
        outcomes: dict[int, Outcome] = {}
        outcome_of_others: Outcome = Delivered()
        try:
            for request in split_into_requests(self._upserts(rows, outcomes), self._request_bytes):
                self._append(request, outcomes)
        except _ERRORS as error:
            outcome_of_others = outcome_of_error(error)
            # The outcome, not the error: Google's messages can hold values of rows.
            logger.debug("append failed: table=%s error=%s", self._table, outcome_of_others)
            self._close_stream()
            if isinstance(outcome_of_others, Rejected):
                # The table can have changed since it was checked. If it is at fault, no row is.
                outcome_of_others = self._check_table() or outcome_of_others
                if isinstance(outcome_of_others, Rejected):
                    return outcome_of_others
        return [outcomes.get(position, outcome_of_others) for position in range(len(rows))]

    def _upserts(self, rows: Sequence[Row], outcomes: dict[int, Outcome]) -> Iterator[tuple[int, bytes]]:
        for position, row in enumerate(rows):
            upsert = encode_row(row, self._request_bytes)
            if isinstance(upsert, Rejected):
                outcomes[position] = upsert
            else:
                yield position, upsert

    def _append(self, request: dict[int, bytes], outcomes: dict[int, Outcome]) -> None:
        """Send one request, and add the outcomes of its rows to `outcomes`. Raises the error if BigQuery refuses the request."""
        while request:
            response = self._send(list(request.values()))
            positions = list(request)
            refused = {positions[e.index]: e.code for e in response.row_errors if 0 <= e.index < len(positions)}
            if not refused:
                if response.error.code:
                    raise BigQueryError(append_error_of_status(response.error))
                outcomes.update(dict.fromkeys(positions, Delivered()))
                return
            for position, code in refused.items():
                name = enum_name(RowError.RowErrorCode, code)
                outcomes[position] = Rejected("not_storable", f"BigQuery refuses the row: {name}")
                del request[position]

    def _check_table(self) -> Retry | Rejected | Misconfigured | None:
        """Return the outcome of preparing the table again; None if the table is usable."""
        try:
            self._prepare_table()
        except _ERRORS as error:
            return outcome_of_error(error)
        return None

    def _send(self, upserts: Sequence[bytes]) -> Any:
        """Return the response to one request. If an open stream has ended, send once more; repeats are safe."""
        if self._stream is not None:
            with suppress(grpc.RpcError, ConnectionError):
                return self._stream.append(upserts)
            self._close_stream()
        else:
            self._prepare_table()
        self._stream = stream = self._open_stream()
        try:
            return stream.append(upserts)
        except grpc.RpcError as error:
            raise BigQueryError(append_error_of_call(error)) from None

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _open_stream(self) -> _AppendStream:
        if self._closed:
            raise ConnectionError("the sink was closed during the write")
        address = urlsplit(self._storage_url)
        options = proxy_options(Proxies.from_environment(), self._storage_url)
        if address.scheme == "http":
            transport = BigQueryWriteGrpcTransport(channel=grpc.insecure_channel(address.netloc, options))
        else:

            def channel(host: str, **arguments: Any) -> grpc.Channel:
                arguments["options"] = [*arguments["options"], *options]
                return BigQueryWriteGrpcTransport.create_channel(host, **arguments)

            credentials = self._credentials(address.scheme)
            transport = BigQueryWriteGrpcTransport(host=address.netloc, credentials=credentials, channel=channel)
        stream = f"projects/{self._project}/datasets/{self._dataset}/tables/{self._name}/streams/_default"
        return _AppendStream(transport, stream, self._timeout_seconds)

    def _prepare_table(self) -> None:
        """Create the table or its missing columns, by the REST API, since the Storage Write API cannot.

        Raises UnusableConfiguration if the table cannot hold each hit once, BigQueryError if an API request fails.
        """
        with AuthorizedSession(self._credentials(urlsplit(self._url).scheme)) as session:
            tables = f"{self._url}/bigquery/v2/projects/{self._project}/datasets/{self._dataset}/tables"
            try:
                table = _request(session, "GET", f"{tables}/{self._name}")
            except BigQueryError as error:
                if error.detail[0] != 404:
                    raise
                table = _request(session, "POST", tables, create_body(self._project, self._dataset, self._name))
            if problem := table_problem(table):
                raise UnusableConfiguration(f"the table {self._table} {problem}")
            if patch := patch_body(table):
                _request(session, "PATCH", f"{tables}/{self._name}", patch)

    def _credentials(self, scheme: str) -> Any:
        if scheme == "http":
            return AnonymousCredentials()
        try:
            if self._key is not None:
                return service_account.Credentials.from_service_account_info(json.loads(self._key), scopes=_SCOPES)
            if self._key_file is not None:
                return service_account.Credentials.from_service_account_file(self._key_file, scopes=_SCOPES)
        except (OSError, ValueError):
            source = self._key_file or "credentials"
            raise UnusableConfiguration(
                f"{source} does not hold a readable service account key; create a new key"
            ) from None
        return google.auth.default(scopes=_SCOPES)[0]


class _AppendStream:
    """One AppendRows call. Responses arrive in the order of the requests."""

    def __init__(self, transport: Any, stream: str, timeout_seconds: float) -> None:
        self._transport = transport
        self._name = stream
        self._timeout_seconds = timeout_seconds
        self._schema: Any = ProtoSchema(proto_descriptor=ROW_DESCRIPTOR)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        # Google routes the call to the table's region by this header.
        region = (("x-goog-request-params", f"write_stream={stream}"),)
        self._call = transport.append_rows(iter(self._requests.get, None), metadata=region)

    def append(self, upserts: Sequence[bytes]) -> Any:
        """Send one request, and return its response. Raises grpc.RpcError if the call has ended, TimeoutError, ConnectionError."""
        rows = AppendRowsRequest.ProtoData(writer_schema=self._schema, rows=ProtoRows(serialized_rows=upserts))
        self._schema = None  # only the first request carries it
        timed_out = threading.Event()

        def cancel() -> None:
            timed_out.set()
            self._call.cancel()

        timer = threading.Timer(self._timeout_seconds, cancel)
        timer.daemon = True
        timer.start()
        self._requests.put(AppendRowsRequest(write_stream=self._name, proto_rows=rows, trace_id="hitrouter:sink"))
        try:
            return AppendRowsResponse.pb(next(self._call))
        except StopIteration:
            raise ConnectionError("BigQuery closed the stream") from None
        except grpc.RpcError:
            if timed_out.is_set():
                raise TimeoutError(f"BigQuery did not answer within {self._timeout_seconds:g} s") from None
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the call and its channel."""
        self._requests.put(None)
        self._call.cancel()
        self._transport.close()


def proxy_options(proxies: Proxies, url: str) -> list[tuple[str, str | int]]:
    """Return the proxy options of a gRPC channel to `url`. Raises UnusableConfiguration if the proxy is invalid.

    They are needed because gRPC reads only the variables in lower case.
    """
    if not proxies:
        return []
    address = urlsplit(url)
    try:
        proxy = proxies.proxy_for(address.scheme, address.hostname or "", address.port)
    except InvalidProxy as error:
        raise UnusableConfiguration(str(error)) from None
    return [("grpc.enable_http_proxy", 0)] if proxy is None else [("grpc.http_proxy", proxy.url_with_credentials)]


def _request(session: Any, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON response of the REST API. Raises BigQueryError if the status is not 200."""
    response = session.request(method, url, json=body, timeout=_REST_TIMEOUT_SECONDS, allow_redirects=False)
    if response.status_code != 200:
        reason = re.search(r'"reason":\s*"(\w{1,60})"', response.text)
        raise BigQueryError(RestError(response.status_code, reason[1] if reason else ""))
    content: dict[str, Any] = response.json()
    return content
