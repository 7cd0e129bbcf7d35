"""Kills roles whose /healthz fails for a minute: `up` asks it, as an orchestrator would."""

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

logger = logging.getLogger("hitrouter.up")

_ASK_EVERY_SECONDS = 10.0
_ANSWER_SECONDS = 5.0
HANG_SECONDS = 60.0
"""A process that was alive once, and then is not for this long, is ended."""
_FAILURES = 6
_TEXT_CHARACTERS = 500


class Watched(Protocol):
    """A role whose process may hang; see RoleProcess."""

    name: str
    admin_address: str

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""


@dataclass(slots=True)
class HangWatch:
    """What one role's process has answered. Times are readings of time.monotonic()."""

    pid: int | None = None
    was_alive: bool = False
    failing_since: float | None = None
    failures: int = 0
    """In a row: a pause of `up` itself is no failure of a role."""

    def observe(self, pid: int | None, problem: str | None, now: float) -> bool:
        """Note an answer: `problem` is why the process `pid` is not alive. Returns True when it must be ended now."""
        if pid != self.pid:
            self.pid, self.was_alive, self.failing_since, self.failures = pid, False, None, 0
        if problem is None:
            self.was_alive, self.failing_since, self.failures = True, None, 0
            return False
        if not self.was_alive:
            return False  # it starts, or its port is another's
        if self.failing_since is None:
            self.failing_since = now
        self.failures += 1
        return now - self.failing_since >= HANG_SECONDS and self.failures >= _FAILURES


def why_not_alive(address: str, pid: int, timeout_seconds: float = _ANSWER_SECONDS) -> str | None:
    """Return why the process `pid` is not alive, by /healthz at `address`, a host:port; None when it is. Blocks."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_seconds)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        text = answer.read(_TEXT_CHARACTERS).decode(errors="replace")
        holder = answer.getheader(HOLDER_HEADER) or "something else"
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from http://{address}/healthz: {error or type(error).__name__}"
    finally:
        connection.close()
    if not holder.endswith(f"process {pid}"):
        return f"{address} is answered by {holder}"
    return None if answer.status == http.HTTPStatus.OK else " ".join(text.split())


def end_what_hangs(
    roles: Sequence[Watched],
    stopping: threading.Event,
    kill: Callable[[int, int], None],
    ask: Callable[[str, int], str | None] = why_not_alive,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Ask each role in turn until `stopping`; `kill` ends a process by its id and a signal. Runs on a thread of its own."""
    watches = {role.name: HangWatch() for role in roles}
    while not stopping.wait(_ASK_EVERY_SECONDS):
        for role in roles:
            pid = role.pid
            if pid is None:
                continue
            problem = ask(role.admin_address, pid)
            if watches[role.name].observe(pid, problem, clock()) and role.pid == pid:
                logger.error("hangs, will be killed: role=%s process=%d reason=%s", role.name, pid, problem)
                with contextlib.suppress(OSError):  # it has just ended
                    kill(pid, signal.SIGKILL)
