"""When a child that has ended is started again, and what its operator is told. Pure."""

from __future__ import annotations

import shlex
import signal
from dataclasses import dataclass

STEADY_SECONDS = 30.0
"""A child that has lived so long has started well: its end is the first failure of a new row."""
_BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_MANY = 5
"""Failures in a row that make a single line too little."""


@dataclass(frozen=True, slots=True)
class Restart:
    """`failures` in a row including this one; `keeps_failing` when the operator should act."""

    failures: int
    wait_seconds: float

    @property
    def keeps_failing(self) -> bool:
        """Has it failed often enough to say what to do?"""
        return self.failures >= _MANY


def after_end(failures: int, lived_seconds: float) -> Restart:
    """What follows the end of a child that had failed `failures` times in a row before."""
    failures = 1 if lived_seconds > STEADY_SECONDS else failures + 1
    return Restart(failures, _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1])


def advice(code: int, file: str) -> str:
    """What to do about a child that keeps ending so; exit codes are those of docs/operations.md."""
    if code == 1:
        named = shlex.quote(file)
        return (
            f"run `hitrouter validate -c {named}` and `hitrouter topics -c {named}`, and mend what they name; "
            "it is also refused when a port is taken"
        )
    if code == 69:
        return "check that Kafka runs and that kafka.bootstrap_servers names it"
    if code == -signal.SIGKILL:
        return "look for the out-of-memory killer in the kernel's log (dmesg), and give the machine or container more memory"
    if code < 0:
        return "it crashed in native code: report the stack above with the versions of hitrouter and Python"
    return "its reason stands here and its last lines above: mend what they name, else report them as a bug"
