"""Decides when an ended child process is restarted, and advises its operator. Pure."""

from __future__ import annotations

import shlex
import signal
from dataclasses import dataclass

STABLE_SECONDS = 30.0
"""Uptime after which a child counts as stable; its next end is then the first failure of a new series."""
_BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_FAILURES_TO_ALERT = 5
"""Consecutive failures from which on the operator gets advice."""


@dataclass(frozen=True, slots=True)
class Restart:
    """When to restart a child. `failures` counts consecutive failures, with this one."""

    failures: int
    wait_seconds: float

    @property
    def keeps_failing(self) -> bool:
        """Whether the child failed so often that the operator should act."""
        return self.failures >= _FAILURES_TO_ALERT


def next_restart(failures: int, uptime_seconds: float) -> Restart:
    """Return the restart of a child that ended after `uptime_seconds`, with `failures` consecutive failures before."""
    failures = 1 if uptime_seconds > STABLE_SECONDS else failures + 1
    return Restart(failures, _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1])


def advice(code: int, file: str) -> str:
    """Return what to do about a child that keeps ending with `code`; docs/reference/processes.md lists the exit codes."""
    if code == 1:
        named = shlex.quote(file)
        return (
            f"run `hitrouter validate -c {named}` and `hitrouter topics -c {named}`, and correct what they report; "
            "a role also ends with this code if its port is in use"
        )
    if code == 69:
        return "check that Kafka runs and that kafka.bootstrap_servers is its address"
    if code == -signal.SIGKILL:
        return (
            "look for the out-of-memory killer in the kernel log (dmesg), and give the machine or container more memory"
        )
    if code < 0:
        return "it crashed in native code: report the stack above with the versions of hitrouter and Python"
    return "correct what its reason and its last log lines name; otherwise report them as a bug"
