"""S3 for tests: moto's server, an imitation that supports conditional puts."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer


@contextmanager
def running_s3() -> Iterator[str]:
    """Run the server; yield its address. A PUT creates a bucket."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # otherwise it logs each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def new_bucket(endpoint: str, name: str) -> tuple[str, dict[str, str]]:
    """Return the address of a prefix in a new bucket, and the options to open it."""
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=10):
        pass
    keys = {"region": "us-east-1", "access_key_id": "key", "secret_access_key": "s3cret"}
    return f"s3://{name}/some/where", {"endpoint": endpoint, **keys}
