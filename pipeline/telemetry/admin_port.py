"""Claims the admin port of a worker. Role and slot determine the port; no other port is tried."""

from __future__ import annotations

import errno
import http.client
import logging
import socket
import time

from pipeline.errors import ConfigurationError

logger = logging.getLogger(__name__)

HOLDER_HEADER = "X-Hitrouter-Worker"
"""Response header of an admin endpoint that names the worker."""
WAIT_SECONDS = 5.0
"""How long a worker waits for its port, since its previous instance can still be stopping."""
_RETRY_SECONDS = 0.1
_REQUEST_TIMEOUT_SECONDS = 1.0


def claim_port(address: str, owner: str, wait_seconds: float | None = None) -> socket.socket:
    """Return a socket that listens on `address`, a host:port, for the worker `owner`. Blocks while another process holds the port.

    Raises ConfigurationError, which names the holder, if the port is not free after `wait_seconds` (default: WAIT_SECONDS).
    """
    wait_seconds = WAIT_SECONDS if wait_seconds is None else wait_seconds
    deadline = time.monotonic() + wait_seconds
    is_waiting = False
    while True:
        try:
            return _listen(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                message = f"{owner} cannot listen on {address}: {error.strerror}; change `admin.listen`"
                raise ConfigurationError([message]) from None
        if time.monotonic() >= deadline:
            raise ConfigurationError([_port_in_use(address, owner)])
        if not is_waiting:
            is_waiting = True
            logger.warning(
                "admin port in use, waiting: worker=%s address=%s wait_seconds=%.0f", owner, address, wait_seconds
            )
        time.sleep(_RETRY_SECONDS)


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # Connections of a previous instance can be in TIME_WAIT. This does not share the port with a running process.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _port_in_use(address: str, owner: str) -> str:
    port = address.rpartition(":")[2]
    holder = _holder(address)
    if holder is None:
        return (
            f"{owner} cannot listen on {address}, its admin port: another process listens there "
            f"(find it with `lsof -i :{port}`); stop that process, or change `admin.listen`"
        )
    return (
        f"{owner} cannot listen on {address}, its admin port: hitrouter's {holder} listens there; "
        "stop that worker, give this one another --slot, or set another `admin.listen` in this file"
    )


def _holder(address: str) -> str | None:
    """Return the worker of hitrouter that serves `address`, or None if another program does."""
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    connection = http.client.HTTPConnection(host, int(port), timeout=_REQUEST_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/healthz")
        holder = connection.getresponse().getheader(HOLDER_HEADER)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    # The response can come from any program, and its text goes into the log.
    return "".join(c for c in holder[:100] if c.isprintable()) if holder else None
