"""What BigQuery's answers mean: its two APIs refuse in ways of their own, and a refusal becomes one outcome."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.bigquery_storage_v1.types import StorageError
from grpc_status import rpc_status

from pipeline.destination import Misconfigured, Rejected, Retry

_CHECK = "check project, dataset, table and the rights of the credentials"
# Of gRPC's codes those that name the operator; all others but INVALID_ARGUMENT pass by themselves.
_OPERATORS = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"})


class Unusable(Exception):
    """The operator's table or key can't be used; the message says why, and what to do."""


class TableRefusal(NamedTuple):
    """What the REST API answers: the status, and the first of its reasons."""

    status: int
    reason: str


class RowsRefusal(NamedTuple):
    """What the Storage Write API answers: gRPC's code, and the name of its own error where it gives one."""

    code: str
    storage_error: str = ""


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, refusal: TableRefusal | RowsRefusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def refusal_of_call(error: Any) -> RowsRefusal:
    """From the grpc.RpcError that ended a call."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    return RowsRefusal(error.code().name) if status is None else refusal_of(status)


def refusal_of(status: Any) -> RowsRefusal:
    """From a google.rpc.Status, which may carry the name of a storage error."""
    for detail in status.details:
        found = StorageError.pb(StorageError())
        if detail.Unpack(found):
            return RowsRefusal(_code_name(status.code), name_of(StorageError.StorageErrorCode, found.code))
    return RowsRefusal(_code_name(status.code))


def name_of(codes: Any, number: int) -> str:
    """The name of one of Google's codes; its number where the client is older than the code."""
    return next((str(code.name) for code in codes if code.value == number), str(number))


def _code_name(number: int) -> str:
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), "UNKNOWN")


def verdict_of(error: Exception) -> Retry | Rejected | Misconfigured:
    """What to do next; messages name no value of a row, nor anything of a key."""
    if isinstance(error, Unusable):
        return Misconfigured(str(error))
    if isinstance(error, Refused):
        refusal = error.refusal
        return _verdict_of_table(refusal) if isinstance(refusal, TableRefusal) else _verdict_of_rows(refusal)
    name = type(error).__name__
    if isinstance(error, GoogleAuthError) and not (error.retryable or isinstance(error, TransportError)):
        return Misconfigured(f"Google refuses the credentials: {name}; check them")
    return Retry(str(error) if type(error) in (ConnectionError, TimeoutError) else name)


def _verdict_of_table(refusal: TableRefusal) -> Retry | Misconfigured:
    status, reason = refusal
    # 409: another worker made it first. 403 is also said for quotas that are full for a moment (bigquery/docs/error-messages).
    if status in (408, 409, 429) or status >= 500 or reason in ("rateLimitExceeded", "quotaExceeded"):
        return Retry(f"http_{status} {reason}".strip())
    return Misconfigured(f"BigQuery refuses the table: {status} {reason}; {_CHECK}")


def _verdict_of_rows(refusal: RowsRefusal) -> Retry | Rejected | Misconfigured:
    code, storage_error = refusal
    told = f"{code} {storage_error}".strip()
    if code in _OPERATORS:
        return Misconfigured(f"BigQuery refuses: {told}; {_CHECK}; a new table is known everywhere after some minutes")
    if code == "INVALID_ARGUMENT":
        if storage_error:
            return Misconfigured(
                f"BigQuery refuses: {told}; was the table changed? A change is known after some minutes"
            )
        return Rejected("not_storable", "BigQuery refuses the row: INVALID_ARGUMENT")
    return Retry(told)
