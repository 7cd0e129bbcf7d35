"""CPU per request of HTTP servers, interleaved: nginx, bare uvloop, Starlette, our intake with and without Kafka, batches."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from bench.measure import scheduled_seconds
from bench.workload import configure, hit
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.topics import TopicNames

CONNECTIONS = (64, 256)
"""With 64 the load waits for acknowledgements most of the time; with 256 the servers are busy."""
BATCH = 50
_DIFFERENT = 1000
"""Requests with an id each, so that they go to all partitions."""
_NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.error;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi; keepalive_requests 100000000;
  server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} }}
}}
"""

NAMES = (
    "nginx return 204",
    "Starlette acked",
    "bare without Kafka",
    "ours without Kafka",
    "bare acked",
    "ours acked",
    "ours batch, per event",
)


def _request(path: str, body: bytes) -> bytes:
    token = base64.b64encode(b"token:").decode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nUser-Agent: bench/1\r\n"
        f"Authorization: Basic {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def single_request(number: int = 0) -> bytes:
    """One hit of 1 KB for /track."""
    return _request("/track", hit(number)[1])


def _batch() -> bytes:
    messages = []
    for number in range(BATCH):
        one = json.loads(hit(number * 2)[1])
        user, payload = one["event"]["user"], one["event"]["payload"]
        messages.append(
            {
                "type": "track",
                "messageId": one["hitId"],
                "event": one["event"]["name"],
                "properties": payload | {"text": one["event"]["text"]},
                "context": one["context"],
                "timestamp": one["sentAt"],
                **user,
            }
        )
    return json.dumps({"batch": messages, "sentAt": "2026-11-24T10:15:30.123Z"}).encode()


class Contestants:
    """Starts each server on a port of its own."""

    def __init__(self, folder: Path, servers: str) -> None:
        self._folder = folder
        self._servers = servers
        self.single = folder / "single.http"
        self.single.write_bytes(b"".join(map(single_request, range(_DIFFERENT))))
        self.batch = folder / "batch.http"
        self.batch.write_bytes(_request("/v1/batch", _batch()))
        self._request_bytes = {self.single: len(single_request()), self.batch: self.batch.stat().st_size}

    def command(self, name: str, port: int) -> list[str] | None:
        """None when the contestant is not on this machine."""
        file, config = configure(
            self._folder,
            self._servers,
            f"http-{port}-",
            intake={"listen": f"127.0.0.1:{port}"},
            admin={"listen": f"127.0.0.1:{free_port()}"},
        )
        if name.startswith("nginx"):
            binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
            if binary is None:
                return None
            settings = self._folder / "nginx.conf"
            settings.write_text(_NGINX.format(folder=self._folder, port=port))
            return [binary, "-e", str(self._folder / "nginx.error"), "-c", str(settings)]
        if name.startswith("Starlette"):
            topic = TopicNames(config.kafka.topic_prefix).hits_raw
            return [sys.executable, "-m", "bench.http_starlette", self._servers, topic, str(port)]
        if name.startswith("bare"):
            return [sys.executable, "-m", "bench.http_bare", str(port), *([str(file)] if "acked" in name else [])]
        module = "bench.http_nowhere" if "without" in name else "pipeline"
        return [sys.executable, "-m", module, *([] if "without" in name else ["intake", "-c"]), str(file)]

    def run(self, name: str, count: int, connections: int) -> float | None:
        """CPU-microseconds per request, or per event of a batch."""
        port = free_port()
        command = self.command(name, port)
        if command is None:
            return None
        batched = "batch" in name
        request, per_request = (self.batch, BATCH) if batched else (self.single, 1)
        count //= 10 if batched else 1
        with (self._folder / "http.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(port, process)
            wait_for_yes(port, request.read_bytes()[: self._request_bytes[request]])
            self._load(port, request, count // 5, connections)
            before = scheduled_seconds(process.pid)
            self._load(port, request, count, connections)
            return (scheduled_seconds(process.pid) - before) / count / per_request * 1e6
        finally:
            process.kill()
            process.wait()

    def _load(self, port: int, requests: Path, count: int, connections: int) -> None:
        arguments = ["127.0.0.1", *map(str, (port, requests, self._request_bytes[requests], count, connections))]
        subprocess.run([sys.executable, "-m", "bench.http_load", *arguments], check=True, timeout=300)


def wait_for_yes(port: int, request: bytes) -> None:
    """Until `request` is taken: an intake listens, and says 503, before it has found Kafka. Raises RuntimeError when it is not."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(request)
            if connection.recv(65_536).startswith((b"HTTP/1.1 204", b"HTTP/1.1 200")):
                return
        time.sleep(0.1)
    raise RuntimeError("the server takes no request; see http.log")


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until it listens. Raises RuntimeError when it does not."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} does not listen")
