"""Azure Blob Storage for tests: Microsoft's emulator Azurite, which checks signatures and supports conditional puts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate

from tests.npm import NODE, installed

ACCOUNT = "hits"
KEY = base64.b64encode(b"hitrouter's tests" * 2).decode()
_VERSION = "2023-11-03"


@contextmanager
def running_azure() -> Iterator[str]:
    """Run Azurite in memory; yield its address with the account."""
    main = installed() / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    command = [str(NODE), str(main), "--blobPort", "0", "--inMemoryPersistence", "--silent", "--disableTelemetry"]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if "successfully listens on " in line:
                    break
            else:
                raise AssertionError(f"Azurite did not start: {''.join(said)}")
            yield f"{line.split()[-1]}/{ACCOUNT}"
        finally:
            process.kill()


def new_container(endpoint: str, name: str) -> tuple[str, dict[str, str]]:
    """Return the address of a prefix in a new container, and the options to open it."""
    # Signed as in Azure's "Authorize with Shared Key": the method, eleven headers that are absent here, the x-ms headers, the resource.
    ours = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
    told = "".join(f"{header}:{value}\n" for header, value in ours.items())
    text = "PUT" + "\n" * 12 + f"{told}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
    ours["authorization"] = f"SharedKey {ACCOUNT}:{signature}"
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=ours)
    with urllib.request.urlopen(request, timeout=10):
        pass
    return f"az://{name}/some/where", {"endpoint": endpoint, "account_name": ACCOUNT, "account_key": KEY}
