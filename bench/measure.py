"""CPU of a process between two points of its way through a backlog."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_POLL_SECONDS = 0.1
_FROM, _TO = 0.2, 0.95


class Sample(NamedTuple):
    """CPU-microseconds per hit, and hits per second of wall clock."""

    cpu_us: float
    per_second: float


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def scheduled_seconds(pid: int) -> float:
    """The same from the scheduler's own clock, in ns instead of ticks of 10 ms, for short runs; only threads that live."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def measure(
    command: list[str], progress: Callable[[], int], hits: int, log: Path, timeout_seconds: float = 240.0
) -> Sample:
    """Run `command` until `progress` reaches `hits`; what it costs between 20 % and 95 % of the way."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        start: tuple[float, float, int] | None = None
        deadline = time.monotonic() + timeout_seconds
        while True:
            done = progress()
            now = (cpu_seconds(process.pid), time.monotonic(), done)
            if start is None and done >= hits * _FROM:
                start = now
            if start is not None and done >= hits * _TO and done > start[2]:
                count = done - start[2]
                return Sample((now[0] - start[0]) / count * 1e6, count / (now[1] - start[1]))
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} stands at {done} of {hits}; see {log}")
            time.sleep(_POLL_SECONDS)
    finally:
        process.kill()
        process.wait()
