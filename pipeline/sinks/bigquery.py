"""Google BigQuery: a table that holds each hit once, because its rows are upserts by a primary key (project_id, hit_id).

Offsets of a write stream of our own would refuse repeats too, but only while somebody remembers the stream's name, its base and which
rows were refused: after kill -9 that must come from a second store, and a zombie with a stream of its own would still double. BigQuery's
change data capture needs none of it. A row with `_CHANGE_TYPE` UPSERT on the default stream replaces the row of the same key, whoever wrote
it, in whatever batches, and a query reads the table merged (cloud.google.com/bigquery/docs/change-data-capture). So a batch may be repeated
freely: after a crash, by a zombie, after an answer that was lost. The key must be declared, NOT ENFORCED: BigQuery only merges by it.

An append is stored whole or not at all. Rows that are named in its `row_errors` are rejected and the others go again, at once.
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
from pipeline.sinks.bigquery_table import (
    ROW_DESCRIPTOR,
    encode_row,
    more_columns,
    new_table,
    requests_of,
    unfit_table,
)
from pipeline.sinks.bigquery_verdict import (
    Refused,
    TableRefusal,
    Unusable,
    name_of,
    refusal_of,
    refusal_of_call,
    verdict_of,
)
from pipeline.sinks.proxies import Proxies, UnfitProxy
from pipeline.sinks.table_row import Row

logger = logging.getLogger("hitrouter.sinks.bigquery")

_SCOPES = ("https://www.googleapis.com/auth/bigquery",)
_TABLE_SECONDS = 30.0
_ANSWER_SECONDS = 60.0
_FAILURES = (Refused, Unusable, GoogleAuthError, OSError)


class BigQuerySink:
    """One connection to the table's default stream, made when it is needed and made again after a failure."""

    def __init__(self, declared: BigQuery, settings: Settings, answer_seconds: float = _ANSWER_SECONDS) -> None:
        self._table = declared.table(settings)
        self._project, self._dataset, self._name = self._table.rsplit(".", 2)
        self._key, self._key_file = declared.key(settings), declared.key_file(settings)
        self._url, self._storage_url = declared.url(settings).rstrip("/"), declared.storage_url(settings).rstrip("/")
        self._request_bytes = declared.limits.request_bytes
        self._answer_seconds = answer_seconds
        self._appends: _Appends | None = None
        self._closed = False

    async def write(self, rows: Sequence[Row]) -> Verdict:
        """Store the rows: one outcome for each, or Rejected for all when one of them can't be stored and BigQuery does not say which."""
        return await asyncio.to_thread(self._write, rows)

    async def close(self) -> None:
        """Close the connection, and make no other."""
        self._closed = True
        await asyncio.to_thread(self._close)

    def _write(self, rows: Sequence[Row]) -> Verdict:
        outcomes: dict[int, Outcome] = {}
        pause: Outcome = Delivered()
        try:
            for request in requests_of(self._upserts(rows, outcomes), self._request_bytes):
                self._append(request, outcomes)
        except _FAILURES as error:
            pause = verdict_of(error)
            logger.debug("an append failed: %s", pause)  # Google's own texts may hold values of rows
            self._close()
            if isinstance(pause, Rejected):
                # If the table is at fault, which may have changed meanwhile, no row is.
                pause = self._fault_of_table() or pause
                if isinstance(pause, Rejected):
                    return pause
        return [outcomes.get(position, pause) for position in range(len(rows))]

    def _upserts(self, rows: Sequence[Row], outcomes: dict[int, Outcome]) -> Iterator[tuple[int, bytes]]:
        for position, row in enumerate(rows):
            upsert = encode_row(row, self._request_bytes)
            if isinstance(upsert, Rejected):
                outcomes[position] = upsert
            else:
                yield position, upsert

    def _append(self, request: dict[int, bytes], outcomes: dict[int, Outcome]) -> None:
        """Add the outcomes of one request; raises what is in the way of its rows."""
        while request:
            answer = self._answer(list(request.values()))
            positions = list(request)
            refused = {positions[e.index]: e.code for e in answer.row_errors if 0 <= e.index < len(positions)}
            if not refused:
                if answer.error.code:
                    raise Refused(refusal_of(answer.error))
                outcomes.update(dict.fromkeys(positions, Delivered()))
                return
            for position, code in refused.items():
                name = name_of(RowError.RowErrorCode, code)
                outcomes[position] = Rejected("not_storable", f"BigQuery refuses the row: {name}")
                del request[position]

    def _fault_of_table(self) -> Retry | Rejected | Misconfigured | None:
        try:
            self._prepare()
        except _FAILURES as error:
            return verdict_of(error)
        return None

    def _answer(self, upserts: Sequence[bytes]) -> Any:
        """The answer to one request. A connection that was in use may have ended since; rows can be repeated freely, so once more."""
        if self._appends is not None:
            with suppress(grpc.RpcError, ConnectionError):
                return self._appends.ask(upserts)
            self._close()
        else:
            self._prepare()
        self._appends = appends = self._opened()
        try:
            return appends.ask(upserts)
        except grpc.RpcError as error:
            raise Refused(refusal_of_call(error)) from None

    def _close(self) -> None:
        appends, self._appends = self._appends, None
        if appends is not None:
            appends.close()

    def _opened(self) -> _Appends:
        if self._closed:
            raise ConnectionError("the connection was closed meanwhile")
        address = urlsplit(self._storage_url)
        through = proxy_options(Proxies.from_environment(), self._storage_url)
        if address.scheme == "http":
            transport = BigQueryWriteGrpcTransport(channel=grpc.insecure_channel(address.netloc, through))
        else:

            def channel(host: str, **arguments: Any) -> grpc.Channel:
                arguments["options"] = [*arguments["options"], *through]
                return BigQueryWriteGrpcTransport.create_channel(host, **arguments)

            credentials = self._credentials(address.scheme)
            transport = BigQueryWriteGrpcTransport(host=address.netloc, credentials=credentials, channel=channel)
        stream = f"projects/{self._project}/datasets/{self._dataset}/tables/{self._name}/streams/_default"
        return _Appends(transport, stream, self._answer_seconds)

    def _prepare(self) -> None:
        """The table, made when it is missing, with the columns that it lacks. The Storage Write API can't do that."""
        with AuthorizedSession(self._credentials(urlsplit(self._url).scheme)) as session:
            tables = f"{self._url}/bigquery/v2/projects/{self._project}/datasets/{self._dataset}/tables"
            try:
                table = _asked(session, "GET", f"{tables}/{self._name}")
            except Refused as refused:
                if refused.refusal[0] != 404:
                    raise
                table = _asked(session, "POST", tables, new_table(self._project, self._dataset, self._name))
            if unfit := unfit_table(table):
                raise Unusable(f"the table {self._table} {unfit}")
            if more := more_columns(table):
                _asked(session, "PATCH", f"{tables}/{self._name}", more)

    def _credentials(self, scheme: str) -> Any:
        if scheme == "http":
            return AnonymousCredentials()
        try:
            if self._key is not None:
                return service_account.Credentials.from_service_account_info(json.loads(self._key), scopes=_SCOPES)
            if self._key_file is not None:
                return service_account.Credentials.from_service_account_file(self._key_file, scopes=_SCOPES)
        except (OSError, ValueError):
            place = self._key_file or "credentials"
            raise Unusable(f"{place} holds no service account's key that can be read; make another one") from None
        return google.auth.default(scopes=_SCOPES)[0]


class _Appends:
    """One AppendRows call: requests go, answers come, in the same order."""

    def __init__(self, transport: Any, stream: str, answer_seconds: float) -> None:
        self._transport = transport
        self._stream = stream
        self._answer_seconds = answer_seconds
        self._schema: Any = ProtoSchema(proto_descriptor=ROW_DESCRIPTOR)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        # Google finds the table's region by this header.
        region = (("x-goog-request-params", f"write_stream={stream}"),)
        self._call = transport.append_rows(iter(self._requests.get, None), metadata=region)

    def ask(self, upserts: Sequence[bytes]) -> Any:
        """Raises grpc.RpcError when the call has ended, TimeoutError when there is no answer in time."""
        rows = AppendRowsRequest.ProtoData(writer_schema=self._schema, rows=ProtoRows(serialized_rows=upserts))
        self._schema = None  # only the first request has it
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._call.cancel()

        timer = threading.Timer(self._answer_seconds, give_up)
        timer.daemon = True
        timer.start()
        self._requests.put(AppendRowsRequest(write_stream=self._stream, proto_rows=rows, trace_id="hitrouter:sink"))
        try:
            return AppendRowsResponse.pb(next(self._call))
        except StopIteration:
            raise ConnectionError("BigQuery closed the stream") from None
        except grpc.RpcError:
            if late.is_set():
                raise TimeoutError(f"BigQuery did not answer within {self._answer_seconds:g} s") from None
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the call and its channel."""
        self._requests.put(None)
        self._call.cancel()
        self._transport.close()


def proxy_options(proxies: Proxies, url: str) -> list[tuple[str, str | int]]:
    """The options of a gRPC channel to `url`; gRPC itself reads the variables in lower case only. Raises Unusable."""
    if not proxies:
        return []
    address = urlsplit(url)
    try:
        proxy = proxies.of(address.scheme, address.hostname or "", address.port)
    except UnfitProxy as error:
        raise Unusable(str(error)) from None
    return [("grpc.enable_http_proxy", 0)] if proxy is None else [("grpc.http_proxy", proxy.with_credentials)]


def _asked(session: Any, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = session.request(method, url, json=body, timeout=_TABLE_SECONDS, allow_redirects=False)
    if answer.status_code != 200:
        reason = re.search(r'"reason":\s*"(\w{1,60})"', answer.text)
        raise Refused(TableRefusal(answer.status_code, reason[1] if reason else ""))
    found: dict[str, Any] = answer.json()
    return found
