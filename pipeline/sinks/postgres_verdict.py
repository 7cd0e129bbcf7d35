"""What PostgreSQL's errors mean: one outcome each, in messages that name no value of a row."""

from __future__ import annotations

import re

import psycopg

from pipeline.destination import Misconfigured, Rejected, Retry

# Classes of SQLSTATE (PostgreSQL, appendix A): data, integrity, view's check, limit, what a trigger raises.
_DATA = ("22", "23", "44", "54", "P0")
_OPERATORS = ("0A", "28", "42", "3D", "3F")  # not supported, authorization, syntax or access, catalog, schema
_NO_TABLE = "55000"  # a view that takes no rows, for one
_NO_RIGHT = "42501"
_GRANT = "GRANT INSERT, SELECT ON the table and USAGE ON its schema to this user; see docs/destinations.md"
# Before a connection is there libpq gives no SQLSTATE; in other languages than English these are tried again.
_SAID = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "no password supplied",
    "Servname not supported",  # a port that is none
    "permission denied",
    "no such database",  # PgBouncer
    "no such user",
)
_AWAY = (
    "Connection refused",
    "No such file or directory",
    "could not translate host name",
    "No route to host",
    "timeout expired",
    "server closed the connection",
    "is starting up",
    "is shutting down",
)
"""What libpq and a server that is not there yet say, for the operator who reads why a connection waits."""


class UnfitTable(Exception):
    """The operator's table cannot take hits; the message says why, and what to do."""


def verdict_of(error: psycopg.Error | OSError | UnfitTable) -> Retry | Rejected | Misconfigured:
    """Return what to do next; messages name no value of a row."""
    if isinstance(error, UnfitTable):
        return Misconfigured(str(error))
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, psycopg.DataError) or state[:2] in _DATA:
        return Rejected("not_storable", f"PostgreSQL can't store it: {_without_values(error)}")
    if isinstance(error, psycopg.ProgrammingError) and not state:
        return Misconfigured("the dsn can't be read; write postgresql://user:password@host/database")
    if state[:2] in _OPERATORS or state == _NO_TABLE or (not state and any(said in str(error) for said in _SAID)):
        # These errors are about our own statement, so what they quote are names; a trigger may build statements from values.
        said = _without_values(error) if state and _is_raised_by_code(error) else _first_line(error)
        do = _GRANT if state == _NO_RIGHT else "check address, user, password and table"
        return Misconfigured(f"PostgreSQL refuses: {said}; {do}")
    # Of a text that a stranger may have sent only what is ours.
    why = state or next((known for known in _AWAY if known in str(error)), "")
    return Retry(f"{type(error).__name__}{why and ': ' + why}")


def _without_values(error: psycopg.Error | OSError) -> str:
    """Return what the server said without values of a row: the name of the error, its text, the column or constraint.

    PostgreSQL puts a value behind a colon or into quotes. Names of tables, columns and constraints come in fields of their own. A
    error that a procedural language raised may hold anything, so only its name and code stay.
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
    """Return whether code of the database's owner raised it, or made the statement that failed; True where the server does not say.

    Procedural languages raise from pl_exec.c, plperl.c, plpy_elog.c. What the server itself raises inside of a function has a
    context, as have errors of its JSON parser, which quote values there and in the detail only.
    """
    if not isinstance(error, psycopg.Error) or error.diag.source_file is None:
        return True
    source_file = error.diag.source_file
    by_language = source_file.startswith("pl") and not source_file.startswith("plan")  # plancat.c is the planner's
    return by_language or (bool(error.diag.context) and not source_file.startswith("json"))


_COLON = re.compile("\\s?[:\uff1a]")
_QUOTES = "\"'\u00ab\u00bb\u2018\u2019\u201c\u201d\u201e\u300c\u300d"
"""Of the languages that a server may speak."""
_QUOTED = re.compile(f"[{_QUOTES}].*[{_QUOTES}]")
"""From the first quote to the last one: a value may hold quotes itself."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
