"""Maps errors of BigQuery's two APIs, REST and Storage Write, to outcomes."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.bigquery_storage_v1.types import StorageError
from grpc_status import rpc_status

from pipeline.destination import Misconfigured, Rejected, Retry

_CHECK = "check project, dataset, table and the permissions of the credentials"
# gRPC codes that the operator must fix. All other codes except INVALID_ARGUMENT are transient.
_OPERATOR_CODES = frozenset(
    {"PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
)


class UnusableConfiguration(Exception):
    """The operator's table, key or proxy cannot be used. The message states the reason and what to do."""


class RestError(NamedTuple):
    """An error of the REST API: the status, and the first of its reasons."""

    status: int
    reason: str


class AppendError(NamedTuple):
    """An error of the Storage Write API: the gRPC code, and the name of the storage error if there is one."""

    code: str
    storage_error: str = ""


class BigQueryError(Exception):
    """BigQuery has answered with an error; `detail` is the error."""

    def __init__(self, detail: RestError | AppendError) -> None:
        super().__init__(str(detail))
        self.detail = detail


def append_error_of_call(error: Any) -> AppendError:
    """Return the error in the grpc.RpcError that ended a call."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    return AppendError(error.code().name) if status is None else append_error_of_status(status)


def append_error_of_status(status: Any) -> AppendError:
    """Return the error in a google.rpc.Status, whose details can hold a storage error."""
    for detail in status.details:
        storage_error = StorageError.pb(StorageError())
        if detail.Unpack(storage_error):
            name = enum_name(StorageError.StorageErrorCode, storage_error.code)
            return AppendError(_grpc_code_name(status.code), name)
    return AppendError(_grpc_code_name(status.code))


def enum_name(enum: Any, number: int) -> str:
    """Return the name of a value of one of Google's enums; its number if the client library does not know it."""
    return next((str(code.name) for code in enum if code.value == number), str(number))


def _grpc_code_name(number: int) -> str:
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), "UNKNOWN")


def outcome_of_error(error: Exception) -> Retry | Rejected | Misconfigured:
    """Return the outcome of `error`. Its message holds no value of a row and no part of a key."""
    if isinstance(error, UnusableConfiguration):
        return Misconfigured(str(error))
    if isinstance(error, BigQueryError):
        detail = error.detail
        return _outcome_of_rest_error(detail) if isinstance(detail, RestError) else _outcome_of_append_error(detail)
    name = type(error).__name__
    if isinstance(error, GoogleAuthError) and not (error.retryable or isinstance(error, TransportError)):
        return Misconfigured(f"Google refuses the credentials: {name}; check them")
    return Retry(str(error) if type(error) in (ConnectionError, TimeoutError) else name)


def _outcome_of_rest_error(error: RestError) -> Retry | Misconfigured:
    status, reason = error
    # 409: another worker has created the table. 403 can also mean an exceeded quota (cloud.google.com/bigquery/docs/error-messages).
    if status in (408, 409, 429) or status >= 500 or reason in ("rateLimitExceeded", "quotaExceeded"):
        return Retry(f"http_{status} {reason}".strip())
    return Misconfigured(f"BigQuery refuses access to the table: {status} {reason}; {_CHECK}")


def _outcome_of_append_error(error: AppendError) -> Retry | Rejected | Misconfigured:
    code, storage_error = error
    text = f"{code} {storage_error}".strip()
    if code in _OPERATOR_CODES:
        return Misconfigured(f"BigQuery refuses: {text}; {_CHECK}; a new table takes some minutes to become available")
    if code == "INVALID_ARGUMENT":
        if storage_error:
            return Misconfigured(
                f"BigQuery refuses: {text}; check the schema of the table; a change takes some minutes to become effective"
            )
        return Rejected("not_storable", "BigQuery refuses the row: INVALID_ARGUMENT")
    return Retry(text)
