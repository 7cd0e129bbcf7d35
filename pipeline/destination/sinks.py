"""The sinks that store hits themselves; `http.py` has the one that sends requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.destination.http import Http, Limits


@dataclass(frozen=True, slots=True)
class Files:
    """The files sink. Its functions read the `folder` (a path, or the address of a bucket) and the `format` from the settings.

    `options` returns those of the object store: region, endpoint, credentials.
    """

    folder: Callable[[Any], str]
    format: Callable[[Any], str]
    options: Callable[[Any], Mapping[str, str]] = lambda settings: {}


@dataclass(frozen=True, slots=True)
class Postgres:
    """The PostgreSQL sink. Its functions read the database address and the table from the settings."""

    dsn: Callable[[Any], str]
    table: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class ClickHouse:
    """The ClickHouse sink. Its functions read address, user, password, database and table from the settings."""

    url: Callable[[Any], str]
    user: Callable[[Any], str]
    password: Callable[[Any], str]
    database: Callable[[Any], str]
    table: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class BigQuery:
    """The BigQuery sink. Its functions read the table (`project.dataset.table`), a key or key file, and two addresses from the settings."""

    table: Callable[[Any], str]
    key: Callable[[Any], str | None]
    key_file: Callable[[Any], str | None]
    url: Callable[[Any], str]
    storage_url: Callable[[Any], str]
    limits: Limits


Sink = Http | Files | Postgres | ClickHouse | BigQuery
