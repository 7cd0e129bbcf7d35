"""Processes of this machine, by `ps`, which every system has."""

from __future__ import annotations

import subprocess
from typing import NamedTuple


class Process(NamedTuple):
    """One line of `ps`. `state` begins with Z for one that has ended and is not reaped."""

    pid: int
    parent: int
    state: str
    command: str


def processes() -> list[Process]:
    """All processes."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    found = []
    for line in listed.splitlines():
        pid, parent, state, *command = line.split(None, 3)
        found.append(Process(int(pid), int(parent), state, command[0] if command else ""))
    return found


def children_of(parent: int, word: str = "") -> list[int]:
    """The children of `parent`, and theirs, whose command line holds `word`."""
    every = processes()
    found: list[int] = []
    wanted = {parent}
    while wanted:
        below = [process for process in every if process.parent in wanted]
        found += [process.pid for process in below if word in process.command]
        wanted = {process.pid for process in below}
    return found


def is_alive(pid: int) -> bool:
    """Does it run? One that has ended and is not reaped does not."""
    return any(process.pid == pid and not process.state.startswith("Z") for process in processes())
