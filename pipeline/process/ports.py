"""Processes that share a port."""

from __future__ import annotations

import socket
import sys

SHARE_PORT: int = getattr(socket, "SO_REUSEPORT_LB", socket.SO_REUSEPORT)
"""The option of a listening socket that others may listen beside. FreeBSD balances with one of its own."""
BALANCES_PORTS = sys.platform.startswith(("linux", "freebsd"))
"""Do they share the HTTP connections, too? On macOS one process gets all of them until it ends."""
