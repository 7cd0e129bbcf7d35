"""Maps PostgreSQL's errors to outcomes, whose messages hold no value of a row."""

from __future__ import annotations

import re

import psycopg

from pipeline.destination import Misconfigured, Rejected, Retry

# Classes of SQLSTATE (PostgreSQL, appendix A) that a value causes: data, integrity, check option of a view, limit, raised by a trigger.
_DATA_CLASSES = ("22", "23", "44", "54", "P0")
# Classes that the operator must fix: not supported, authorization, syntax or access, catalog, schema.
_OPERATOR_CLASSES = ("0A", "28", "42", "3D", "3F")
_WRONG_OBJECT_STATE = "55000"  # for example a view that accepts no rows
_INSUFFICIENT_PRIVILEGE = "42501"
_GRANT = "GRANT INSERT, SELECT ON the table and USAGE ON its schema to this user; see docs/how-to/fill-postgresql.md"
# Texts of errors that the operator must fix: libpq gives no SQLSTATE before it is connected. In other languages than English such
# errors are retried.
_OPERATOR_TEXTS = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
    "Servname not supported",  # an invalid port
    "permission denied",
    "no such database",  # PgBouncer
    "no such user",
)
_UNAVAILABLE_TEXTS = (
    "Connection refused",
    "No such file or directory",
    "could not translate host name",
    "No route to host",
    "timeout expired",
    "server closed the connection",
    "is starting up",
    "is shutting down",
)
"""Texts of libpq and of a starting or stopping server, which the reason of a pause shows to the operator."""


class UnusableTable(Exception):
    """The operator's table cannot store hits. The message states the reason and what to do."""


def outcome_of_error(error: psycopg.Error | OSError | UnusableTable) -> Retry | Rejected | Misconfigured:
    """Return the outcome of `error`. Its message holds no value of a row."""
    if isinstance(error, UnusableTable):
        return Misconfigured(str(error))
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, psycopg.DataError) or state[:2] in _DATA_CLASSES:
        return Rejected("not_storable", f"PostgreSQL cannot store the hit: {_without_values(error)}")
    if isinstance(error, psycopg.ProgrammingError) and not state:
        return Misconfigured("the dsn is invalid; write postgresql://user:password@host/database")
    if state[:2] in _OPERATOR_CLASSES or state == _WRONG_OBJECT_STATE or (not state and _has_operator_text(error)):
        # These errors are about this sink's statement, so they quote only names, unless a trigger built a statement from values.
        text = _without_values(error) if state and _is_raised_by_code(error) else _first_line(error)
        action = _GRANT if state == _INSUFFICIENT_PRIVILEGE else "check address, user, password and table"
        return Misconfigured(f"PostgreSQL refuses: {text}; {action}")
    # The peer may not be PostgreSQL, so only known parts of its text are shown.
    cause = state or next((known for known in _UNAVAILABLE_TEXTS if known in str(error)), "")
    return Retry(f"{type(error).__name__}{cause and ': ' + cause}")


def _has_operator_text(error: psycopg.Error | OSError) -> bool:
    return any(text in str(error) for text in _OPERATOR_TEXTS)


def _without_values(error: psycopg.Error | OSError) -> str:
    """Return the error without values of a row: its name, its text, the column or constraint.

    PostgreSQL puts values after a colon or into quotes. Names of tables, columns and constraints are in separate fields. The text of
    an error that a procedural language raised can hold anything, so only its name and code are returned.
    """
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return f"{type(error).__name__}: {_COLON.split(_first_line(error))[0]}"
    diag, name = error.diag, f"{type(error).__name__} ({error.sqlstate})"
    if diag.message_primary is None or _is_raised_by_code(error):
        return name
    text = diag.message_primary
    for known in filter(None, (diag.column_name, diag.constraint_name, diag.table_name)):
        text = text.replace(f'"{known}"', known)
    return f"{name}: {_QUOTED.sub('…', _COLON.split(text)[0])}"


def _is_raised_by_code(error: psycopg.Error | OSError) -> bool:
    """Return whether code in the database raised the error or built the failed statement; True if that is unknown.

    Procedural languages raise errors from pl_exec.c, plperl.c and plpy_elog.c. Errors of the server inside a function have a context.
    So have errors of its JSON parser, which quote values only in context and detail.
    """
    if not isinstance(error, psycopg.Error) or error.diag.source_file is None:
        return True
    source_file = error.diag.source_file
    # plancat.c belongs to the planner.
    by_language = source_file.startswith("pl") and not source_file.startswith("plan")
    return by_language or (bool(error.diag.context) and not source_file.startswith("json"))


_COLON = re.compile("\\s?[:\uff1a]")
_QUOTES = "\"'\u00ab\u00bb\u2018\u2019\u201c\u201d\u201e\u300c\u300d"
"""Quotes of all languages of server messages."""
_QUOTED = re.compile(f"[{_QUOTES}].*[{_QUOTES}]")
"""Greedy, from the first quote to the last one, because a value can contain quotes."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
