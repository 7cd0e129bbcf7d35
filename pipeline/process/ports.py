"""Describes how this operating system shares a port between processes."""

from __future__ import annotations

import socket
import sys

SHARE_PORT: int = getattr(socket, "SO_REUSEPORT_LB", socket.SO_REUSEPORT)
"""Socket option that lets several processes listen on a port. FreeBSD balances only with SO_REUSEPORT_LB."""
BALANCES_PORTS = sys.platform.startswith(("linux", "freebsd"))
"""Whether the system spreads the HTTP connections over the processes. On macOS one process gets all of them until it ends."""
