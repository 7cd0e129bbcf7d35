"""Kills roles whose /healthz fails for a minute. `up` probes it, as an orchestrator does."""

from __future__ import annotations

import contextlib
import http.client
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.telemetry.admin_port import HOLDER_HEADER

logger = logging.getLogger(__name__)

_PROBE_INTERVAL_SECONDS = 10.0
_PROBE_TIMEOUT_SECONDS = 5.0
HANG_SECONDS = 60.0
"""A process that was alive and then fails its probes for this long is killed."""
_FAILURES = 6
_MAX_BODY_BYTES = 500


class Watched(Protocol):
    """A role whose process is probed; see RoleProcess."""

    name: str
    admin_address: str

    @property
    def pid(self) -> int | None:
        """Process id, or None if the role does not run."""


@dataclass(slots=True)
class HangWatch:
    """Probe results of one role's process. Times are readings of time.monotonic()."""

    pid: int | None = None
    was_alive: bool = False
    failing_since: float | None = None
    failures: int = 0
    """Consecutive failures; their number matters, since a pause of `up` itself must not count as a hang."""

    def observe(self, pid: int | None, problem: str | None, now: float) -> bool:
        """Record a probe: `problem` is why the process `pid` is not alive, or None. Return whether it must be killed now."""
        if pid != self.pid:
            self.pid, self.was_alive, self.failing_since, self.failures = pid, False, None, 0
        if problem is None:
            self.was_alive, self.failing_since, self.failures = True, None, 0
            return False
        if not self.was_alive:
            return False  # the process is starting, or another process has its port
        if self.failing_since is None:
            self.failing_since = now
        self.failures += 1
        return now - self.failing_since >= HANG_SECONDS and self.failures >= _FAILURES


def liveness_problem(address: str, pid: int, timeout_seconds: float = _PROBE_TIMEOUT_SECONDS) -> str | None:
    """Return why the process `pid` is not alive, or None if it is. Requests /healthz at `address`, a host:port. Blocks."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_seconds)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        text = answer.read(_MAX_BODY_BYTES).decode(errors="replace")
        holder = answer.getheader(HOLDER_HEADER) or "another program"
    except (OSError, http.client.HTTPException) as error:
        return f"no response from http://{address}/healthz: {error or type(error).__name__}"
    finally:
        connection.close()
    if not holder.endswith(f"process {pid}"):
        return f"{address} is served by {holder}"
    return None if answer.status == http.HTTPStatus.OK else " ".join(text.split())


def kill_hung_roles(
    roles: Sequence[Watched],
    stopping: threading.Event,
    kill: Callable[[int, int], None],
    probe: Callable[[str, int], str | None] = liveness_problem,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Probe each role in turn until `stopping`; `kill` takes a process id and a signal. Runs on its own thread."""
    watches = {role.name: HangWatch() for role in roles}
    while not stopping.wait(_PROBE_INTERVAL_SECONDS):
        for role in roles:
            pid = role.pid
            if pid is None:
                continue
            problem = probe(role.admin_address, pid)
            if watches[role.name].observe(pid, problem, clock()) and role.pid == pid:
                logger.error("role hangs, killing it: role=%s pid=%d reason=%s", role.name, pid, problem)
                with contextlib.suppress(OSError):  # the process has just ended
                    kill(pid, signal.SIGKILL)
