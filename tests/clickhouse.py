"""ClickHouse for tests, from a package.

Engine, SQL, MergeTree on disk and deduplication are ClickHouse's own (chdb-core, the engine as a library). This file adds an HTTP
interface, because the only packaged server is Debian's of 2018, which clickhouse-connect does not support. The interface runs one query
at a time, and authenticates its one user by Basic or headers. It copies settings of the URL into the query, and returns error codes
like ClickHouse's HTTP interface. It has no compression, sessions or privileges.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

USER, PASSWORD = "default", "secret"
_INSERT = re.compile(rb"\s*(INSERT INTO .*?) FORMAT (\w+)\s*?\n", re.DOTALL)
_SETTINGS = ("insert_deduplication_token", "insert_deduplicate", "async_insert")


@contextmanager
def running_clickhouse(folder: Path) -> Iterator[str]:
    """Run a server process whose data is in `folder`; yield its address."""
    command = [sys.executable, "-m", "tests.clickhouse", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def ask_clickhouse(url: str, query: str) -> list[list[str]]:
    """Return the rows of a query's result, as texts."""
    request = urllib.request.Request(
        url, query.encode(), headers={"X-ClickHouse-User": USER, "X-ClickHouse-Key": PASSWORD}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [line.split("\t") for line in answer.read().decode().splitlines()]


def serve(folder: str) -> None:
    """Serve until standard input ends."""
    from chdb import session

    engine = session.Session(folder + "/data")
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._reply(200, b"Ok.\n")

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = dict(parse_qsl(urlsplit(self.path).query))
            if self._wrong_user():
                self._reply(403, b"Code: 516. DB::Exception: Authentication failed. (AUTHENTICATION_FAILED)", "516")
                return
            try:
                with one_at_a_time:
                    answer = self._run(asked, body)
            except Exception as error:
                code = re.search(r"Code: (\d+)", str(error))
                self._reply(500, str(error).encode(), code[1] if code else "1001")
            else:
                self._reply(200, answer)

        def _wrong_user(self) -> bool:
            given = self.headers.get("Authorization", "").removeprefix("Basic ")
            if given:
                return base64.b64decode(given) != f"{USER}:{PASSWORD}".encode()
            return (self.headers.get("X-ClickHouse-User"), self.headers.get("X-ClickHouse-Key")) != (USER, PASSWORD)

        def _run(self, asked: dict[str, str], body: bytes) -> bytes:
            if "database" in asked:
                engine.query(f"USE `{asked['database']}`")
            text = asked["query"].encode() + b"\n" + body if "query" in asked else body
            if insert := _INSERT.match(text):
                with tempfile.NamedTemporaryFile(dir=folder) as file:
                    file.write(text[insert.end() :])
                    file.flush()
                    settings = ", ".join(f"{name} = '{asked[name]}'" for name in _SETTINGS if name in asked)
                    into = insert[1].decode()
                    engine.query(
                        f"{into} FROM INFILE '{file.name}' "
                        + (f"SETTINGS {settings} " if settings else "")
                        + f"FORMAT {insert[2].decode()}"
                    )
                return b""
            return bytes(engine.query(text.decode(), asked.get("default_format", "TabSeparated")).bytes() or b"")

        def _reply(self, status: int, body: bytes, code: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if code is not None:
                self.send_header("X-ClickHouse-Exception-Code", code)
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Ignore errors, because some tests kill the client."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1])
