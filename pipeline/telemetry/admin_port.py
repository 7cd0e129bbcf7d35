"""Claiming the admin port of a worker: the one that role and slot decide, or none."""

from __future__ import annotations

import errno
import http.client
import logging
import socket
import time

from pipeline.errors import ConfigurationError

logger = logging.getLogger("hitrouter.admin")

HOLDER_HEADER = "X-Hitrouter-Worker"
"""Names the worker in each answer of an admin endpoint."""
WAIT_SECONDS = 5.0
"""How long a worker waits for its port: its previous instance may be about to end."""
_RETRY_SECONDS = 0.1
_ASK_SECONDS = 1.0


def claim_port(address: str, owner: str, wait_seconds: float | None = None) -> socket.socket:
    """Listen on `address`, a host:port, for the worker `owner`. Blocks while another process holds the port.

    Raises ConfigurationError that names who holds it when it is not free after `wait_seconds`, WAIT_SECONDS by default.
    """
    wait_seconds = WAIT_SECONDS if wait_seconds is None else wait_seconds
    deadline = time.monotonic() + wait_seconds
    waits = False
    while True:
        try:
            return _listen(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                message = f"{owner} can't listen on {address}: {error.strerror}; change `admin.listen`"
                raise ConfigurationError([message]) from None
        if time.monotonic() >= deadline:
            raise ConfigurationError([_taken(address, owner)])
        if not waits:
            waits = True
            logger.warning("admin port taken, waiting: worker=%s address=%s seconds=%.0f", owner, address, wait_seconds)
        time.sleep(_RETRY_SECONDS)


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # Connections of a previous instance may linger in TIME_WAIT. The port is not shared with a running process.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _taken(address: str, owner: str) -> str:
    port = address.rpartition(":")[2]
    holder = _holder(address)
    if holder is None:
        return (
            f"{owner} can't listen on {address}, its admin port: another process listens there "
            f"(`lsof -i :{port}` names it); stop that process, or change `admin.listen`"
        )
    return (
        f"{owner} can't listen on {address}, its admin port: hitrouter's {holder} listens there; "
        "stop that worker, give this one another --slot, or give this file another `admin.listen`"
    )


def _holder(address: str) -> str | None:
    """The worker that serves `address`; None when it is not one of hitrouter's."""
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    asked = http.client.HTTPConnection(host, int(port), timeout=_ASK_SECONDS)
    try:
        asked.request("GET", "/healthz")
        named = asked.getresponse().getheader(HOLDER_HEADER)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        asked.close()
    # Any process may answer there, and the text goes into our log.
    return "".join(c for c in named[:100] if c.isprintable()) if named else None
